//! Twilio's identifiers, each a type of its own.
//!
//! A SID is two capital letters and 32 hex digits
//! (<https://www.twilio.com/docs/glossary/what-is-a-sid>). A value of these
//! types has that shape, so it is safe in a URL, a key or a log line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Length of every SID in bytes.
pub const SID_LEN: usize = 34;

/// A text that is not the SID it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not {what} SID: {prefix} and 32 hex digits are expected")]
pub struct InvalidSid {
    what: &'static str,
    prefix: &'static str,
}

fn parse(text: &str, prefix: &'static str, what: &'static str) -> Result<[u8; SID_LEN], InvalidSid> {
    let invalid = InvalidSid { what, prefix };
    let bytes: [u8; SID_LEN] = text.as_bytes().try_into().map_err(|_| invalid.clone())?;
    let (head, digits) = bytes.split_at(prefix.len());
    if head == prefix.as_bytes() && digits.iter().all(u8::is_ascii_hexdigit) { Ok(bytes) } else { Err(invalid) }
}

macro_rules! sid {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; SID_LEN]);

        impl $name {
            /// The SID as text.
            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).expect("a SID is ASCII: it was checked when it was made")
            }
        }

        impl FromStr for $name {
            type Err = InvalidSid;
            fn from_str(text: &str) -> Result<Self, InvalidSid> {
                parse(text, $prefix, $what).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                std::borrow::Cow::<'de, str>::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

sid!(
    /// An account: `AC…`.
    AccountSid, "AC", "an account"
);
sid!(
    /// A call: `CA…`.
    CallSid, "CA", "a call"
);
sid!(
    /// A recording: `RE…`.
    RecordingSid, "RE", "a recording"
);
sid!(
    /// A conference: `CF…`.
    ConferenceSid, "CF", "a conference"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_well_formed_sid_comes_back_as_it_was(digits in "[0-9a-fA-F]{32}") {
            let text = format!("RE{digits}");
            prop_assert_eq!(text.parse::<RecordingSid>().unwrap().to_string(), text);
        }

        #[test]
        fn nothing_else_is_a_sid(text in "\\PC{0,40}") {
            let right = text.len() == SID_LEN
                && text.starts_with("CA")
                && text[2..].bytes().all(|b| b.is_ascii_hexdigit());
            prop_assert_eq!(text.parse::<CallSid>().is_ok(), right);
        }
    }

    #[test]
    fn one_kind_is_never_taken_for_another() {
        let call = format!("CA{}", "0".repeat(32));
        assert!(call.parse::<CallSid>().is_ok());
        assert!(call.parse::<RecordingSid>().is_err());
        assert!(call.parse::<AccountSid>().is_err());
        assert!(call.parse::<ConferenceSid>().is_err());
    }

    #[test]
    fn a_path_cannot_hide_in_a_sid() {
        for digits in
            ["../../../../../../../../../../..", "0000000000000000000000000000000/", "0000000000000000000000000000000é"]
        {
            assert!(format!("RE{digits}").parse::<RecordingSid>().is_err(), "{digits}");
        }
    }
}
