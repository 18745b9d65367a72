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

/// Why a node that does not know of a statement could not go on after it.
fn breaks_older_nodes(statement: &str, created: &[String]) -> Option<&'static str> {
    let words: Vec<&str> = statement.split(' ').collect();
    let is_new = |table: &str| created.iter().any(|name| name == table.trim_matches(['"', '(']));
    match words[..] {
        ["CREATE", "TABLE" | "INDEX", ..] => None,
        ["CREATE", "UNIQUE", "INDEX", ..] => {
            let table = words.iter().position(|word| *word == "ON").map(|at| words[at + 1]);
            (!table.is_some_and(is_new)).then_some("what older nodes write may be refused")
        }
        ["INSERT", "INTO", table, ..] | ["UPDATE", table, ..] | ["DELETE", "FROM", table, ..] if is_new(table) => None,
        ["UPDATE", ..] => None,
        ["ALTER", "TABLE", _, "ADD", "COLUMN", ..] => {
            let required = statement.contains("NOT NULL") && !statement.contains("DEFAULT");
            (required || statement.contains("UNIQUE")).then_some("older nodes do not fill that column")
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
            let table = |statement: &String| {
                statement.strip_prefix("CREATE TABLE ")?.split([' ', '(']).next().map(str::to_owned)
            };
            let created: Vec<String> = statements.iter().filter_map(table).collect();
            for statement in &statements {
                let why = breaks_older_nodes(statement, &created);
                assert_eq!(why, None, "{}: {statement}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

#[test]
fn what_would_stop_an_older_node_is_noticed() {
    let created = ["NEW".to_owned()];
    let sql = "DROP TABLE recordings; ALTER TABLE a RENAME TO b; ALTER TABLE a DROP COLUMN b; \
               ALTER TABLE a ADD COLUMN b TEXT NOT NULL; CREATE UNIQUE INDEX i ON recordings (b); DELETE FROM events;";
    for statement in statements(sql) {
        assert!(breaks_older_nodes(&statement, &created).is_some(), "{statement}");
    }
    let sql = "CREATE TABLE new (a BIGINT); CREATE UNIQUE INDEX i ON new (a); INSERT INTO new (a) SELECT 1; \
               ALTER TABLE a ADD COLUMN b TEXT; -- DROP TABLE a;\n ALTER TABLE a ADD COLUMN c BIGINT NOT NULL DEFAULT 0;";
    for statement in statements(sql) {
        assert_eq!(breaks_older_nodes(&statement, &created), None, "{statement}");
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
