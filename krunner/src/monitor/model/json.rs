//! Custom serialization of the fields of objects for programs. Pure.
//!
//! Journals may be written by an older version. A command line is read back as its displayed text: its arguments are not
//! separated and control characters stay escaped.

use std::sync::Arc;
use std::time::SystemTime;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::process::Cmdline;
use super::time::{parse_rfc3339, utc};

pub(in crate::monitor) fn joined<S: Serializer>(cmdline: &Cmdline, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cmdline)
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
pub(in crate::monitor) fn joined_if_any<S: Serializer>(
    cmdline: &Option<Arc<Cmdline>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    cmdline.as_ref().map(ToString::to_string).serialize(serializer)
}

pub(in crate::monitor) fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&utc(*time))
}

pub(in crate::monitor) fn read_cmdline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Cmdline>, D::Error> {
    String::deserialize(deserializer).map(cmdline)
}

pub(in crate::monitor) fn read_cmdline_if_any<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Arc<Cmdline>>, D::Error> {
    Option::<String>::deserialize(deserializer).map(|text| text.map(cmdline))
}

fn cmdline(text: String) -> Arc<Cmdline> {
    Arc::new(Cmdline { bytes: text.into_bytes(), is_cut: false })
}

pub(in crate::monitor) fn read_rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_rfc3339(&text).ok_or_else(|| D::Error::custom(format_args!("{text:?} is not an RFC 3339 time")))
}
