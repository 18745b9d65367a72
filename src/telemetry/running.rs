//! What is counted for as long as it lasts.

use metrics::gauge;

use super::fetches::FETCHES_RUNNING;
use super::telling::FEED_READERS;

/// Something that is counted as long as this lives.
pub struct Running(&'static str);

impl Running {
    /// An attempt to fetch a recording.
    pub fn fetch() -> Self {
        Self::begin(FETCHES_RUNNING)
    }

    /// A reader of the feed.
    pub fn feed_reader() -> Self {
        Self::begin(FEED_READERS)
    }

    fn begin(gauge: &'static str) -> Self {
        gauge!(gauge).increment(1.0);
        Self(gauge)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        gauge!(self.0).decrement(1.0);
    }
}
