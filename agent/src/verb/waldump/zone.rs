//! The machine's time zone, as C's `localtime` takes it: `TZ`, else `/etc/localtime`, else UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use walfmt::text::{LocalTime, Utc, Zone};

pub(super) struct LocalZone(TimeZone);

impl LocalZone {
    pub(super) fn of_machine() -> Self {
        // An empty TZ is UTC to C.
        let is_empty = std::env::var_os("TZ").is_some_and(|zone| zone.is_empty());
        let zone =
            if is_empty { TimeZone::UTC } else { TimeZone::try_system().unwrap_or(TimeZone::UTC) };
        Self(zone)
    }
}

impl Zone for LocalZone {
    fn at(&self, seconds: i64) -> LocalTime {
        // A time that no calendar has is some record's damage.
        let Ok(timestamp) = Timestamp::from_second(seconds) else { return Utc.at(seconds) };
        let info = self.0.to_offset_info(timestamp);
        let abbreviation = info.abbreviation().to_owned();
        LocalTime { offset: info.offset().seconds(), abbreviation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_says_offset_and_abbreviation_of_the_moment() {
        let zone = LocalZone(TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone"));
        let at = |seconds| {
            let LocalTime { offset, abbreviation } = zone.at(seconds);
            (offset, abbreviation)
        };
        assert_eq!(at(1_704_067_200), (3600, "CET".to_owned()));
        assert_eq!(at(1_720_000_000), (7200, "CEST".to_owned()));
        assert_eq!(at(i64::MAX), (0, "UTC".to_owned()));
    }
}
