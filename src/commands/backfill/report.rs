//! The numbers that a backfill ends with, and whether they are right.

use anyhow::bail;
use indicatif::HumanBytes;
use jiff::civil::Date;
use serde::Serialize;

use super::super::print_line;
use super::tell;
use crate::catalog::DayCount;
use crate::domain::sid::AccountSid;
use crate::vault::backfill::Survey;

/// The numbers of an account, or of all.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Numbers {
    /// Different recordings on Twilio's list.
    found: u64,
    new: u64,
    known: u64,
    stored: u64,
    failed: u64,
    absent: u64,
    erased: u64,
    evicted: u64,
    on_the_way: u64,
    deleted_at_twilio: u64,
    missing: u64,
    unreadable: u64,
    new_failed: u64,
    /// Of what is new: as it was stored, or, of a dry run, as it is estimated.
    new_bytes: u64,
    of_unknown_length: u64,
    /// Of what is new, in a dry run: erased by its age as soon as it is there.
    past_retention: u64,
    #[serde(skip)]
    erased_at_twilio: bool,
    #[serde(skip)]
    is_survey: bool,
}

impl From<DayCount> for Numbers {
    fn from(count: DayCount) -> Self {
        Self {
            found: count.found,
            new: count.new,
            known: count.found.saturating_sub(count.new + count.deleted_at_twilio),
            stored: count.stored,
            failed: count.failed,
            absent: count.absent,
            erased: count.erased,
            evicted: count.evicted,
            on_the_way: count.on_the_way,
            deleted_at_twilio: count.deleted_at_twilio,
            missing: count.missing,
            unreadable: count.unreadable,
            new_failed: count.new_failed,
            new_bytes: count.new_bytes,
            of_unknown_length: 0,
            past_retention: 0,
            erased_at_twilio: false,
            is_survey: false,
        }
    }
}

impl From<Survey> for Numbers {
    fn from(survey: Survey) -> Self {
        Self {
            found: survey.found,
            new: survey.new,
            known: survey.found - survey.new - survey.deleted_at_twilio,
            deleted_at_twilio: survey.deleted_at_twilio,
            unreadable: survey.unreadable,
            new_bytes: survey.estimated_bytes,
            of_unknown_length: survey.of_unknown_length,
            past_retention: survey.past_retention,
            erased_at_twilio: survey.erased_at_twilio,
            is_survey: true,
            ..Self::default()
        }
    }
}

impl std::iter::Sum for Numbers {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            found: sum.found + one.found,
            new: sum.new + one.new,
            known: sum.known + one.known,
            stored: sum.stored + one.stored,
            failed: sum.failed + one.failed,
            absent: sum.absent + one.absent,
            erased: sum.erased + one.erased,
            evicted: sum.evicted + one.evicted,
            on_the_way: sum.on_the_way + one.on_the_way,
            deleted_at_twilio: sum.deleted_at_twilio + one.deleted_at_twilio,
            missing: sum.missing + one.missing,
            unreadable: sum.unreadable + one.unreadable,
            new_failed: sum.new_failed + one.new_failed,
            new_bytes: sum.new_bytes + one.new_bytes,
            of_unknown_length: sum.of_unknown_length + one.of_unknown_length,
            past_retention: sum.past_retention + one.past_retention,
            erased_at_twilio: sum.erased_at_twilio || one.erased_at_twilio,
            is_survey: sum.is_survey || one.is_survey,
        })
    }
}

impl Numbers {
    /// Whether every entry of Twilio's list is accounted for.
    fn add_up(&self) -> bool {
        let stand = match self.is_survey {
            true => self.new + self.known,
            false => self.stored + self.failed + self.absent + self.erased + self.evicted + self.on_the_way,
        };
        self.missing == 0 && self.unreadable == 0 && self.found == stand + self.deleted_at_twilio
    }
}

#[derive(Debug, Serialize)]
pub(super) struct AccountReport {
    pub(super) account_sid: AccountSid,
    #[serde(flatten)]
    pub(super) numbers: Numbers,
    pub(super) error: Option<String>,
}

impl AccountReport {
    pub(super) fn adds_up(&self) -> bool {
        self.error.is_none() && self.numbers.add_up()
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) dry_run: bool,
    pub(super) since: Option<Date>,
    pub(super) until: Option<Date>,
    #[serde(flatten)]
    pub(super) total: Numbers,
    pub(super) adds_up: bool,
    pub(super) seconds: u64,
    pub(super) accounts: Vec<AccountReport>,
}

impl Report {
    pub(super) fn show(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            print_line(&serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        for report in &self.accounts {
            let Numbers { found, new, known, new_bytes, .. } = report.numbers;
            let bytes = HumanBytes(new_bytes);
            match self.dry_run {
                true => print_line(&format!(
                    "{}  found {found}, new {new} (about {bytes}, {} of unknown length), known {known}",
                    report.account_sid, report.numbers.of_unknown_length
                )),
                false => print_line(&format!(
                    "{}  found {found}, new {new} ({bytes}), known {known}: {}",
                    report.account_sid,
                    report.numbers.places()
                )),
            }
        }
        Ok(())
    }

    /// Whether all went well, in words where not.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        for AccountReport { account_sid, numbers, .. } in &self.accounts {
            let where_else = if numbers.erased_at_twilio { ", at Twilio too" } else { "" };
            if numbers.past_retention > 0 {
                tell(&format!(
                    "{account_sid}: {} of the new ones are older than its retention: they would be erased as soon as they \
                     are there{where_else}; --since leaves them out",
                    numbers.past_retention
                ));
            }
        }
        for report in &self.accounts {
            if let Some(error) = &report.error {
                tell(&format!("{}: {error}", report.account_sid));
            }
        }
        if self.accounts.iter().any(|report| report.error.is_some()) {
            bail!("not all is done; the same command goes on from here");
        }
        if !self.adds_up {
            let Numbers { missing, unreadable, .. } = self.total;
            bail!("the numbers do not add up to Twilio's list: {missing} missing, {unreadable} entries unreadable");
        }
        if self.total.new_failed > 0 {
            bail!("{} recordings failed; GET /v1/recordings?state=failed tells why", self.total.new_failed);
        }
        Ok(())
    }
}

impl Numbers {
    /// Where all that was found stands; nothing is said of what there is none of.
    fn places(&self) -> String {
        let places = [
            (self.stored, "stored"),
            (self.failed, "failed"),
            (self.absent, "absent"),
            (self.erased, "erased"),
            (self.evicted, "evicted"),
            (self.on_the_way, "on the way"),
            (self.deleted_at_twilio, "deleted at Twilio"),
            (self.missing, "missing"),
            (self.unreadable, "unreadable"),
        ];
        let told = places.iter().enumerate().filter(|(at, (count, _))| *at == 0 || *count > 0);
        told.map(|(_, (count, name))| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    }
}
