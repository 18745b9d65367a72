//! Rolling upgrades: a node of the version before must go on beside newer ones,
//! so a step of the schema only adds what that node does not miss.

use crate::support::root;

/// The statements of a file, without comments, in upper case, on one line each.
fn statements(sql: &str) -> Vec<String> {
    let code = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
    let code = code.collect::<Vec<_>>().join(" ").to_uppercase();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    code.split(';').map(words).filter(|statement| !statement.is_empty()).collect()
}

/// What earlier statements of the same step made: no older node knows of it.
#[derive(Default)]
struct New {
    tables: Vec<String>,
    /// Of tables that were there: table and column.
    columns: Vec<(String, String)>,
}

impl New {
    fn of(statements: &[String]) -> Self {
        let mut new = Self::default();
        for statement in statements {
            let words: Vec<&str> = statement.split(' ').collect();
            match words[..] {
                ["CREATE", "TABLE", table, ..] => new.tables.push(name(table)),
                ["ALTER", "TABLE", table, "ADD", "COLUMN", column, ..] => {
                    new.columns.push((name(table), name(column)));
                }
                _ => {}
            }
        }
        new
    }

    fn has_table(&self, table: &str) -> bool {
        self.tables.contains(&name(table))
    }

    fn has_column(&self, table: &str, column: &str) -> bool {
        self.columns.contains(&(name(table), name(column)))
    }
}

/// A name without what may stand around or behind it.
fn name(word: &str) -> String {
    word.split('(').next().unwrap_or_default().trim_matches(['"', ')', ',', ' ']).to_owned()
}

/// The columns that an UPDATE sets.
fn set_by(statement: &str) -> Vec<&str> {
    let behind = statement.split_once(" SET ").map_or("", |(_, behind)| behind);
    let end = [" WHERE ", " FROM "].iter().filter_map(|word| behind.find(word)).min().unwrap_or(behind.len());
    let mut depth = 0;
    let assignments = behind[..end].split(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    assignments.map(|assignment| assignment.split('=').next().unwrap_or_default().trim()).collect()
}

/// Words behind which a column refuses what older nodes write, or more is done than to add one.
const MORE_THAN_A_COLUMN: &[&str] =
    &["UNIQUE", "CHECK", "REFERENCES", "PRIMARY", "CONSTRAINT", "GENERATED", "DROP", "ALTER", "RENAME", "ADD"];

/// Why a node that does not know of a statement could not go on after it.
fn breaks_older_nodes(statement: &str, new: &New) -> Option<&'static str> {
    let words: Vec<&str> = statement.split(' ').collect();
    let of_whom = |after: &str| words.iter().position(|word| *word == after).map(|at| words[at + 1]);
    match words[..] {
        ["CREATE", "TABLE", ..] => {
            let refers_to = of_whom("REFERENCES");
            (!refers_to.is_none_or(|table| new.has_table(table))).then_some("what older nodes delete may be refused")
        }
        ["CREATE", "INDEX", ..] => None,
        ["CREATE", "UNIQUE", "INDEX", ..] => {
            let is_new = of_whom("ON").is_some_and(|table| new.has_table(table));
            (!is_new).then_some("what older nodes write may be refused")
        }
        ["INSERT", "INTO", table, ..] | ["UPDATE", table, ..] | ["DELETE", "FROM", table, ..]
            if new.has_table(table) =>
        {
            None
        }
        ["UPDATE", table, ..] => {
            let set = set_by(statement);
            let are_new = !set.is_empty() && set.iter().all(|column| new.has_column(table, column));
            (!are_new).then_some("older nodes know what it changes")
        }
        ["ALTER", "TABLE", _, "ADD", "COLUMN", _, ref how @ ..] => {
            let how = how.join(" ");
            let mut said = how.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            if said.any(|word| MORE_THAN_A_COLUMN.contains(&word)) {
                return Some("what older nodes write may be refused, or it does more than to add");
            }
            let required = how.contains("NOT NULL") && !how.contains("DEFAULT");
            required.then_some("older nodes do not fill that column")
        }
        _ => Some("it does more than to add"),
    }
}

#[test]
fn every_step_after_the_first_only_adds() {
    let mut seen = 0;
    for database in ["sqlite", "postgres"] {
        let folder = root().join("src/catalog/migrations").join(database);
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with("0001") {
                continue;
            }
            let statements = statements(&std::fs::read_to_string(&path).unwrap());
            let new = New::of(&statements);
            for statement in &statements {
                let why = breaks_older_nodes(statement, &new);
                assert_eq!(why, None, "{}: {statement}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

#[test]
fn what_would_stop_an_older_node_is_noticed() {
    const ADDED: &str = "CREATE TABLE new (a BIGINT); ALTER TABLE a ADD COLUMN n BIGINT;";
    let check = |sql: &str| {
        let new = New::of(&statements(&format!("{ADDED}{sql}")));
        statements(sql).into_iter().map(|one| (breaks_older_nodes(&one, &new), one)).collect::<Vec<_>>()
    };
    let breaks = "DROP TABLE recordings; ALTER TABLE a RENAME TO b; ALTER TABLE a DROP COLUMN b; \
        ALTER TABLE a ADD COLUMN b TEXT NOT NULL; CREATE UNIQUE INDEX i ON recordings (b); DELETE FROM events; \
        ALTER TABLE a ADD COLUMN b TEXT CHECK (b <> ''); ALTER TABLE a ADD COLUMN b TEXT REFERENCES new; \
        ALTER TABLE a ADD COLUMN b TEXT REFERENCES new(a); ALTER TABLE a ADD COLUMN b TEXT UNIQUE; \
        ALTER TABLE a ADD COLUMN b TEXT, DROP COLUMN c; ALTER TABLE a ADD COLUMN b TEXT, ADD CONSTRAINT c CHECK (d > 0); \
        ALTER TABLE a ADD COLUMN b BIGINT NOT NULL DEFAULT 0, ALTER COLUMN c SET NOT NULL; \
        CREATE TABLE d (c TEXT REFERENCES recordings (sid)); INSERT INTO a SELECT 1; \
        UPDATE a SET old = 1; UPDATE a SET n = 1, old = 2; UPDATE b SET n = 1; \
        UPDATE a SET n = coalesce(n, 1), old = 2 WHERE n IS NULL; CREATE TRIGGER t AFTER INSERT ON a;";
    for (why, statement) in check(breaks) {
        assert!(why.is_some(), "{statement}");
    }
    let goes_on = "CREATE UNIQUE INDEX i ON new (a); INSERT INTO new (a) SELECT 1; ALTER TABLE a ADD COLUMN b TEXT; \
        -- DROP TABLE a;\n ALTER TABLE a ADD COLUMN c BIGINT NOT NULL DEFAULT 0; CREATE TABLE b (c BIGINT REFERENCES new); \
        UPDATE new SET a = 1; UPDATE a SET n = 1; UPDATE a SET n = coalesce(n, 1) FROM new WHERE new.a = a.old;";
    for (why, statement) in check(goes_on) {
        assert_eq!(why, None, "{statement}");
    }
}

/// PostgreSQL refuses a statement that was prepared with all columns once there is one more.
#[test]
fn no_statement_asks_for_whatever_columns_there_are() {
    let mut folders = vec![root().join("src/catalog")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let words = text.replace("count(*)", "").to_uppercase();
            for (number, line) in words.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
                let all_columns = ["SELECT *", "RETURNING *", ".*,", ".* ", ".*\""];
                let asked = all_columns.iter().any(|all| line.contains(all));
                assert!(!asked, "{}:{}: name them (catalog/columns.rs)", path.display(), number + 1);
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}
