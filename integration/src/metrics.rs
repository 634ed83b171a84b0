//! What an agent's `/metrics` says.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use walfmt::Lsn;

use crate::process::PATIENCE;

/// One scrape: values by name and labels, as the agent wrote them
/// (`walferry_state{stage="tail",state="streaming"}`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Scrapes `http://127.0.0.1:port/metrics`.
    ///
    /// # Errors
    /// Nobody listens, the answer is not 200, or it is not the Prometheus text format.
    pub fn scrape(port: u16) -> Result<Self> {
        Self::parse(&http_get(port, "/metrics")?)
    }

    /// Reads the Prometheus text format; time stamps, which walferry does not write, are refused.
    ///
    /// # Errors
    /// A line is not of that format.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim);
        let samples = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let parse = |line: &str| {
            // The value is behind the last blank; label values may hold blanks.
            let (name, value) = line.rsplit_once(' ').context("no value")?;
            let open = name.matches('{').count();
            ensure!(open == name.matches('}').count(), "labels are not closed");
            Ok((name.trim().to_owned(), value.parse().context("not a number")?))
        };
        samples
            .map(|line| parse(line).with_context(|| format!("metrics line {line:?}")))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// A value by its exact name and labels.
    #[must_use]
    pub fn get(&self, name_and_labels: &str) -> Option<f64> {
        self.0.get(name_and_labels).copied()
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// It is not; the error lists what is.
    pub fn expect(&self, name_and_labels: &str) -> Result<f64> {
        self.get(name_and_labels).with_context(|| {
            let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
            format!("no metric {name_and_labels}; there are: {}", names.join(", "))
        })
    }

    /// One of the node's positions, for example `durable`.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<Lsn> {
        let bytes = self.get(&format!("walferry_position_bytes{{position=\"{name}\"}}"))?;
        // Exact up to 2^53, 9 petabytes.
        Some(Lsn(bytes as u64))
    }

    /// A position that a follower has reported to this node, for example `shipped`.
    #[must_use]
    pub fn follower_position(&self, follower: &str, name: &str) -> Option<Lsn> {
        let labels = format!("{{follower=\"{follower}\",position=\"{name}\"}}");
        Some(Lsn(self.get(&format!("walferry_follower_position_bytes{labels}"))? as u64))
    }

    /// How far the node is behind, in bytes of WAL.
    #[must_use]
    pub fn lag_bytes(&self) -> Option<f64> {
        self.all("walferry_lag_bytes").map(|(_, bytes)| bytes).reduce(f64::max)
    }

    /// How far the node is behind, in seconds.
    #[must_use]
    pub fn lag_seconds(&self) -> Option<f64> {
        self.all("walferry_lag_seconds").map(|(_, seconds)| seconds).reduce(f64::max)
    }

    /// All samples of one metric, whatever their labels.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let of_name = move |key: &str| key.split('{').next() == Some(name);
        self.0
            .iter()
            .filter(move |(key, _)| of_name(key))
            .map(|(key, value)| (key.as_str(), *value))
    }
}

/// The body of `http://127.0.0.1:port/path`. As much HTTP as asking our own agent takes: one
/// request per connection, no redirects, no encodings but chunks.
///
/// # Errors
/// Nobody listens, or the answer is not 200.
pub fn http_get(port: u16, path: &str) -> Result<String> {
    let limit = PATIENCE;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .with_context(|| format!("nobody answers on {address}"))?;
    stream.set_read_timeout(Some(limit)).context("cannot set a time limit")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .context("cannot send a request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("cannot read an answer")?;
    let answer = String::from_utf8(answer).context("the answer is not text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no header")?;
    if head.split_whitespace().nth(1) != Some("200") {
        bail!("GET {path}: {}\n{body}", head.lines().next().unwrap_or_default());
    }
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return without_chunks(body);
    }
    Ok(body.to_owned())
}

/// ```text
/// size in hexadecimal, CR LF, that many bytes, CR LF; the last has size 0
/// ```
fn without_chunks(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk without size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("a chunk is cut short")?);
        body =
            rest.get(size..).and_then(|rest| rest.strip_prefix("\r\n")).context("chunk's end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_format_is_read() {
        let text = "walferry_position_bytes{position=\"durable\"} 50331744\n\
                    walferry_lag_bytes{to=\"replayed\"} 8\n# HELP a_bytes A.\n# TYPE a_bytes gauge\na_bytes 12\n\
                    b{stage=\"tail\",state=\"catching up\"} 1\nb{stage=\"send\",state=\"x\"} 0.5\n";
        let metrics = Metrics::parse(text).expect("the text format");
        assert_eq!(metrics.position("durable"), Some(Lsn(0x300_0060)));
        assert_eq!(metrics.position("replayed"), None);
        assert_eq!(metrics.lag_bytes(), Some(8.0));
        assert_eq!(metrics.get("a_bytes"), Some(12.0));
        assert_eq!(metrics.get("b{stage=\"tail\",state=\"catching up\"}"), Some(1.0));
        assert_eq!(metrics.all("b").map(|(_, value)| value).sum::<f64>(), 1.5);
        assert_eq!(metrics.all("a").count(), 0);
        assert!(metrics.expect("c").is_err());
        for wrong in ["a", "a b", "a{b=\"c\" 1"] {
            assert!(Metrics::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(without_chunks("3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").expect("chunks"), "abcd");
        assert!(without_chunks("9\r\nabc\r\n0\r\n\r\n").is_err());
    }
}
