//! Looking at what a backfill would bring in, and changing nothing.

use std::collections::HashSet;
use std::time::Duration;

use jiff::civil::Date;

use super::{Backfill, BackfillError, made_at, onward};
use crate::catalog::Span;
use crate::domain::sid::AccountSid;
use crate::twilio::Twilio;
use crate::twilio::api::Listed;

/// What there is at Twilio, as far as it was only looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Survey {
    /// Different recordings on the list.
    pub found: u64,
    /// Of these, what is not known here.
    pub new: u64,
    /// Gone at Twilio, and never known here.
    pub deleted_at_twilio: u64,
    /// Entries of the list that could not be read.
    pub unreadable: u64,
    /// The bytes that the new ones would come to, by their lengths, but for those that are erased at once.
    pub estimated_bytes: u64,
    /// The new ones of which Twilio does not tell the length.
    pub of_unknown_length: u64,
    /// The new ones that are so old that they are erased as soon as they are there.
    pub past_retention: u64,
    /// Whether they are erased at Twilio, too.
    pub erased_at_twilio: bool,
}

impl Backfill {
    /// Looks at what there is, and changes nothing.
    pub async fn survey(&self, account: AccountSid, span: Span) -> Result<Survey, BackfillError> {
        let erased_at_twilio = self.retention.get(&account).is_some_and(|terms| terms.erase_at_twilio);
        let mut survey = Survey { erased_at_twilio, ..Survey::default() };
        let mut ahead = self.days_of(span)?;
        while let Some((first, last)) = ahead.pop() {
            for day in self.narrow(account, (first, last), &mut ahead).await? {
                self.survey_day(account, day, &mut survey).await?;
            }
        }
        Ok(survey)
    }

    async fn survey_day(&self, account: AccountSid, day: Date, survey: &mut Survey) -> Result<(), BackfillError> {
        let (mut counted, mut seen) = (HashSet::new(), HashSet::new());
        let (mut next, mut pages) = (None, 0);
        loop {
            let query: Option<String> = next.take();
            let page = self
                .with_patience(account, || 0, async || self.page_of_day(account, day, query.as_deref()).await)
                .await?;
            let listed = || page.recordings.iter().map(|listed| listed.id.recording);
            let known = self
                .with_patience(account, || 0, async || Ok(self.catalog().states_of(account, listed()).await?))
                .await?;
            for listed in page.recordings.iter().filter(|listed| counted.insert(listed.id.recording)) {
                let is_known = known.contains_key(&listed.id.recording);
                survey.add(&self.manners.twilio, listed, is_known, self.is_past_retention(account, listed));
            }
            survey.unreadable += page.unreadable as u64;
            pages += 1;
            next = onward(page, day, &mut seen, pages)?;
            if next.is_none() {
                return Ok(());
            }
        }
    }

    /// Whether it is erased by its age as soon as it is taken.
    fn is_past_retention(&self, account: AccountSid, listed: &Listed) -> bool {
        let age = made_at(listed).zip(self.catalog().clock().now()).map(|(at, now)| now.duration_since(at));
        let keeps_for = self.retention.get(&account).map(|terms| terms.age);
        age.zip(keeps_for).is_some_and(|(age, keeps_for)| age.try_into().is_ok_and(|age: Duration| age >= keeps_for))
    }
}

impl Survey {
    fn add(&mut self, twilio: &Twilio, listed: &Listed, is_known: bool, is_past_retention: bool) {
        self.found += 1;
        match (is_known, listed.described.status.as_str()) {
            (true, _) => {}
            (false, "deleted") => self.deleted_at_twilio += 1,
            (false, status) => {
                self.new += 1;
                if is_past_retention {
                    self.past_retention += 1;
                    return;
                }
                let details = &listed.described.details;
                let format = twilio.formats(&listed.id.account).first();
                match (details.duration_seconds, format) {
                    _ if status == "absent" => {}
                    (Some(seconds), Some(format)) => {
                        self.estimated_bytes += format.estimated_bytes(seconds, details.channels);
                    }
                    _ => self.of_unknown_length += 1,
                }
            }
        }
    }
}
