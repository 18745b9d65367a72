//! One way of talking to both databases.
//!
//! A [`Session`] runs statements with `$1` parameters on SQLite or PostgreSQL,
//! each within a time limit. Only three types cross it: 64-bit integers, texts
//! and bytes, each perhaps NULL. A session that is dropped in the middle of a
//! transaction, or after a statement that did not answer, takes its connection
//! with it: the database rolls back, and the pool never sees it again.

use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Decode, Postgres, Row as _, SqlSafeStr, Sqlite, Type};

use super::{CatalogError, Result, STATEMENT_TIMEOUT};
use crate::domain::digest::Digest;
use crate::domain::recording::ErrorCode;
use crate::domain::sid::{AccountSid, CallSid, ConferenceSid, RecordingSid};
use crate::telemetry;

/// Milliseconds of the catalog's clock, in any statement.
macro_rules! now {
    () => {
        "(SELECT now_ms FROM clock)"
    };
}
pub(super) use now;

/// A parameter.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<Duration> for Value {
    fn from(value: Duration) -> Self {
        Self::Int(Some(super::clock::millis(value)))
    }
}

impl From<jiff::Timestamp> for Value {
    fn from(value: jiff::Timestamp) -> Self {
        Self::Int(Some(value.as_millisecond()))
    }
}

impl From<Option<jiff::Timestamp>> for Value {
    fn from(value: Option<jiff::Timestamp>) -> Self {
        Self::Int(value.map(|at| at.as_millisecond()))
    }
}

impl From<Digest> for Value {
    fn from(value: Digest) -> Self {
        Self::Bytes(Some(value.as_bytes().to_vec()))
    }
}

macro_rules! text_values {
    ($($type:ty),+) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::Text(Some(value.to_string()))
            }
        }
        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self {
                Self::Text(value.map(|value| value.to_string()))
            }
        })+
    };
}
text_values!(&str, String, AccountSid, CallSid, ConferenceSid, RecordingSid);

/// Parameters, `$1` first.
macro_rules! args {
    ($($value:expr),* $(,)?) => {
        vec![$($crate::catalog::sql::Value::from($value)),*]
    };
}
pub(super) use args;

/// One row of an answer.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// The value of a column.
    pub(super) fn get<T>(&self, column: &str) -> Result<T>
    where
        T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>,
    {
        let value = match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        };
        value.map_err(|error| CatalogError::Unreadable(format!("{column}: {error}")))
    }

    /// A text column, parsed.
    pub(super) fn parse<T: std::str::FromStr>(&self, column: &str) -> Result<T> {
        self.parse_opt(column)?.ok_or_else(|| CatalogError::Unreadable(format!("{column} is NULL")))
    }

    /// A text column that may be NULL, parsed.
    pub(super) fn parse_opt<T: std::str::FromStr>(&self, column: &str) -> Result<Option<T>> {
        let text: Option<String> = self.get(column)?;
        let parsed = text.map(|text| text.parse().map_err(|_| CatalogError::Unreadable(format!("{column}: {text:?}"))));
        parsed.transpose()
    }

    /// A time, kept as milliseconds.
    pub(super) fn time(&self, column: &str) -> Result<jiff::Timestamp> {
        self.time_opt(column)?.ok_or_else(|| CatalogError::Unreadable(format!("{column} is NULL")))
    }

    /// A time that may be NULL.
    pub(super) fn time_opt(&self, column: &str) -> Result<Option<jiff::Timestamp>> {
        let millis: Option<i64> = self.get(column)?;
        let time = millis.map(|millis| {
            jiff::Timestamp::from_millisecond(millis)
                .map_err(|_| CatalogError::Unreadable(format!("{column}: {millis}")))
        });
        time.transpose()
    }
}

enum Connection {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

/// A connection, perhaps in a transaction.
pub struct Session {
    connection: Option<Connection>,
    in_transaction: bool,
    /// A statement is under way, or was given up: what the connection will say next is not known.
    unsettled: bool,
    /// Recordings that its transaction gives up.
    given_up: Vec<ErrorCode>,
}

impl Session {
    pub(super) fn sqlite(connection: PoolConnection<Sqlite>) -> Self {
        Self::on(Connection::Sqlite(connection))
    }

    pub(super) fn postgres(connection: PoolConnection<Postgres>) -> Self {
        Self::on(Connection::Postgres(connection))
    }

    fn on(connection: Connection) -> Self {
        Self { connection: Some(connection), in_transaction: false, unsettled: false, given_up: Vec::new() }
    }

    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.connection, Some(Connection::Postgres(_)))
    }

    /// The end of a SELECT whose rows nobody else is to change before the transaction ends. A
    /// transaction of SQLite has them all to itself.
    pub(super) fn for_update(&self) -> &'static str {
        if self.is_postgres() { " FOR UPDATE" } else { "" }
    }

    /// The same, without those rows that another transaction has.
    pub(super) fn for_update_skip_locked(&self) -> &'static str {
        if self.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" }
    }

    /// Begins a transaction with that statement.
    pub(super) async fn begin(&mut self, statement: &'static str) -> Result<()> {
        self.in_transaction = true;
        self.execute(statement, args![]).await.map(|_| ())
    }

    /// Makes all that was done durable. An error leaves open whether it is.
    pub async fn commit(mut self) -> Result<()> {
        self.execute("COMMIT", args![]).await?;
        self.in_transaction = false;
        self.given_up.iter().copied().for_each(telemetry::recording_failed);
        Ok(())
    }

    /// Undoes all that was done, and keeps the connection.
    pub async fn rollback(mut self) -> Result<()> {
        self.execute("ROLLBACK", args![]).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// The rows of a statement.
    pub(super) async fn rows(&mut self, sql: impl SqlSafeStr + Send, args: Vec<Value>) -> Result<Vec<Row>> {
        let sql = sql.into_sql_str();
        self.limited(async move |connection| match connection {
            Connection::Sqlite(connection) => {
                let query = sqlx::query_with(sql, bind::<Sqlite>(args)?);
                Ok(query.fetch_all(&mut **connection).await?.into_iter().map(Row::Sqlite).collect())
            }
            Connection::Postgres(connection) => {
                let query = sqlx::query_with(sql, bind::<Postgres>(args)?);
                Ok(query.fetch_all(&mut **connection).await?.into_iter().map(Row::Postgres).collect())
            }
        })
        .await
    }

    /// The first row of a statement, if there is one.
    pub(super) async fn row(&mut self, sql: impl SqlSafeStr + Send, args: Vec<Value>) -> Result<Option<Row>> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// Runs a statement; says how many rows it changed.
    pub(super) async fn execute(&mut self, sql: impl SqlSafeStr + Send, args: Vec<Value>) -> Result<u64> {
        let sql = sql.into_sql_str();
        self.limited(async move |connection| match connection {
            Connection::Sqlite(connection) => {
                let query = sqlx::query_with(sql, bind::<Sqlite>(args)?);
                Ok(query.execute(&mut **connection).await?.rows_affected())
            }
            Connection::Postgres(connection) => {
                let query = sqlx::query_with(sql, bind::<Postgres>(args)?);
                Ok(query.execute(&mut **connection).await?.rows_affected())
            }
        })
        .await
    }

    /// A recording is given up: it is counted once that is durable, and not before.
    pub(super) fn gives_up(&mut self, code: ErrorCode) {
        self.given_up.push(code);
    }

    /// The connection is not to be used again.
    pub(super) fn give_up(mut self) {
        self.unsettled = true;
    }

    async fn limited<T>(
        &mut self,
        run: impl AsyncFnOnce(&mut Connection) -> std::result::Result<T, sqlx::Error>,
    ) -> Result<T> {
        let connection = self.connection.as_mut().expect("a session has its connection until it is dropped");
        self.unsettled = true;
        let began = Instant::now();
        let done = tokio::time::timeout(STATEMENT_TIMEOUT, run(connection)).await;
        let in_time = done.map_err(|_| CatalogError::Unavailable("a statement was not answered in time".to_owned()));
        let done = in_time.and_then(|done| done.map_err(error));
        telemetry::catalog_answered(outcome_label(&done), began.elapsed());
        // After an error of the connection itself there is nothing to go on with.
        self.unsettled = matches!(done, Err(CatalogError::Unavailable(_)));
        done
    }
}

fn outcome_label<T>(done: &Result<T>) -> &'static str {
    match done {
        Ok(_) => "done",
        Err(CatalogError::Unavailable(_)) => "unavailable",
        Err(_) => "refused",
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.in_transaction && !self.unsettled {
            return;
        }
        match self.connection.take() {
            Some(Connection::Sqlite(connection)) => drop(connection.detach()),
            Some(Connection::Postgres(connection)) => drop(connection.detach()),
            None => {}
        }
    }
}

trait Bind: sqlx::Database {
    fn add(arguments: &mut Self::Arguments, value: Value) -> std::result::Result<(), sqlx::error::BoxDynError>;
}

macro_rules! bind {
    ($database:ty, $arguments:ty) => {
        impl Bind for $database {
            fn add(arguments: &mut $arguments, value: Value) -> std::result::Result<(), sqlx::error::BoxDynError> {
                match value {
                    Value::Int(value) => arguments.add(value),
                    Value::Text(value) => arguments.add(value),
                    Value::Bytes(value) => arguments.add(value),
                }
            }
        }
    };
}
bind!(Sqlite, SqliteArguments);
bind!(Postgres, PgArguments);

fn bind<DB: Bind>(values: Vec<Value>) -> std::result::Result<DB::Arguments, sqlx::Error> {
    let mut arguments = DB::Arguments::default();
    for value in values {
        DB::add(&mut arguments, value).map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

/// Tells an answer of the database from its silence.
pub(super) fn error(error: sqlx::Error) -> CatalogError {
    let unreachable = match &error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_passing(&code)),
        _ => false,
    };
    if unreachable { CatalogError::Unavailable(error.to_string()) } else { CatalogError::Refused(error) }
}

/// Codes of a server that is starting, stopping, full, not the primary any more,
/// or gave up on a lock (PostgreSQL, appendix A), and of a SQLite file that another process holds.
fn is_passing(code: &str) -> bool {
    const SQLITE_BUSY: [&str; 3] = ["5", "261", "517"];
    ["08", "53", "57P", "40", "55P03"].iter().any(|class| code.len() == 5 && code.starts_with(class))
        || ["25P03", "25006"].contains(&code)
        || SQLITE_BUSY.contains(&code)
}

/// Adds a parameter for each value, and gives their places: `$3`, `$4` and so on.
pub(super) fn place_each(values: impl IntoIterator<Item: Into<Value>>, args: &mut Vec<Value>) -> Vec<String> {
    let place = |value: Value| {
        args.push(value);
        format!("${}", args.len())
    };
    values.into_iter().map(Into::into).map(place).collect()
}

/// ` AND column IN ($n, …)` for those values, whose parameters it adds.
pub(super) fn one_of(column: &str, values: impl IntoIterator<Item: Into<Value>>, args: &mut Vec<Value>) -> String {
    let places = place_each(values, args);
    // An empty list matches nothing; `IN ()` is not SQL.
    let places = if places.is_empty() { "NULL".to_owned() } else { places.join(", ") };
    format!(" AND {column} IN ({places})")
}
