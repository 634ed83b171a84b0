//! This node's own certificate: is it this node's, and for how long?

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::finding::{Code, Findings};
use crate::config::Config;
use crate::tls::Tls;

/// A certificate that ends before that is to be renewed now.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

pub(super) fn check(config: &Config, tls: Option<&Arc<Tls>>, findings: &mut Findings) {
    let Some(tls) = tls else {
        if config.tls.is_none() && config.listen.insecure {
            findings.add(
                Code::TlsPlain,
                "[listen] insecure = true without a [tls] section: whoever can reach the port gets \
                 all of the data",
                "give both sides certificates, see [tls]",
            );
        }
        return;
    };
    let name = &config.node.name;
    if !tls.is_certificate_of(name) {
        findings.add(
            Code::TlsName,
            format_args!("the certificate is not one of [node] name = {name:?}: peers refuse it"),
            format_args!("make one whose DNS names have {name:?}, or change the name"),
        );
    }
    for (what, bytes) in tls.certificates() {
        dates(what, &bytes, findings);
    }
}

fn dates(what: &'static str, bytes: &[u8], findings: &mut Findings) {
    let validity = match Certificate::from_der(bytes) {
        Ok(certificate) => *certificate.tbs_certificate().validity(),
        Err(error) => {
            let words = format_args!("{what}: {error}");
            findings.add(Code::TlsFiles, words, "make it anew: it is no X.509 certificate");
            return;
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begins = validity.not_before.to_unix_duration();
    let ends = validity.not_after.to_unix_duration();
    let days = |duration: Duration| duration.as_secs() / (24 * 60 * 60);
    if now < begins {
        findings.add(
            Code::TlsDates,
            format_args!("{what} is valid from {} on, which is to come", validity.not_before),
            "check the clock",
        );
    } else if now > ends {
        findings.add(
            Code::TlsDates,
            format_args!("{what} has ended at {}", validity.not_after),
            "renew it: the agent reads new files by itself",
        );
    } else if ends - now < SOON {
        findings.add(
            Code::TlsEndsSoon,
            format_args!("{what} ends in {} days, at {}", days(ends - now), validity.not_after),
            "renew it: the agent reads new files by itself",
        );
    } else {
        findings.ok("tls", format_args!("{what} is valid for {} more days", days(ends - now)));
    }
}
