//! The follower's side of a connection that only asks.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::decoder::{Decoder, Side};
use crate::error::{ConnectionError, Misbehaviour};
use crate::message::{Message, Probe, Refused, Standing};
use crate::receiver::pop_bytes;

/// What a leader answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// How the node stands with it.
    Standing(Standing),
    /// It does not answer this node, and why.
    Refused(Refused),
}

/// One question to a leader, without the connection: one message there, one back.
#[derive(Debug)]
pub struct Prober {
    decoder: Decoder,
    outgoing: VecDeque<Bytes>,
    answer: Option<ProbeAnswer>,
}

impl Prober {
    /// A connection that was just made; the question is what there is to send.
    #[must_use]
    pub fn new(probe: Probe) -> Self {
        let outgoing = Message::Probe(probe).encode().into();
        Self { decoder: Decoder::new(Side::Leader), outgoing, answer: None }
    }

    /// The next bytes to send.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        pop_bytes(&mut self.outgoing)
    }

    /// Takes bytes from the leader, all of them.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(message) = self.decoder.poll(&mut rest)? else { return Ok(()) };
            if self.answer.is_some() {
                return Err(ConnectionError::Closed);
            }
            self.answer = Some(match message {
                Message::Standing(standing) => ProbeAnswer::Standing(standing),
                Message::Refused(refused) => ProbeAnswer::Refused(refused),
                other => {
                    let (kind, state) = (other.kind(), "waiting for the answer to a probe");
                    return Err(Misbehaviour::Unexpected { kind, state }.into());
                }
            });
        }
        Ok(())
    }

    /// The answer, once it has come whole.
    pub fn answer(&mut self) -> Option<ProbeAnswer> {
        self.answer.take()
    }
}
