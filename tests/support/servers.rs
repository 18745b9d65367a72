//! A real PostgreSQL and a real S3 store, started by the first test that needs
//! them and ended with the test process, however that ends.
//!
//! Each runs on loopback, on free ports, in a temporary folder, as a child of
//! a small shell that waits on a pipe from this process: when the pipe closes,
//! the shell ends its child by process id and removes the folder. A server that
//! cannot be found fails the test; `make test` installs them all.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::Connection;

/// A server must be up within this time; initdb alone takes seconds on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(90);

/// A port that was free a moment ago, and that no connection takes meanwhile:
/// it lies below those that the kernel gives out (32768 and up, ip(7)).
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin at different places.
    let begin = std::process::id().wrapping_mul(613);
    let candidate = || begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS + FIRST;
    let port = |_| u16::try_from(candidate()).expect("a port");
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..PORTS).map(port).find(free).expect("a free port")
}

/// A server and the pipe that keeps it alive.
struct Kept {
    shell: Child,
    folder: PathBuf,
}

impl Kept {
    /// Ends the server now, and waits until it is gone.
    fn stop(mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }

    /// Tells the shell to stop its server or to start it again.
    fn tell(&self, word: &str) {
        use std::io::Write;
        let mut stdin = self.shell.stdin.as_ref().expect("stdin is a pipe");
        writeln!(stdin, "{word}").expect("the shell reads");
    }
}

/// Runs `prepare` and then `start` in a shell, in a temporary folder of its own.
/// `start` starts the server in the background as `$!`; it is ended when this
/// process ends, and may be stopped and started again before.
fn keep(name: &str, prepare: &str, start: &str, args: &[&str], unprivileged: bool) -> Kept {
    let folder = tempfile::Builder::new().prefix(&format!("callvault-{name}-")).tempdir().expect("a folder").keep();
    let whole = format!(
        "set -eu; cd \"$0\"; {prepare} {start} child=$!; trap '' INT TERM HUP; \
         end() {{ kill -INT $child 2>/dev/null || true; wait $child || true; }}; \
         while read -r word; do case $word in stop) end ;; start) {start} child=$! ;; esac; done; \
         end; cd /; rm -rf \"$0\""
    );
    // Appended to: nginx opens it once more, as its stdout.
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).expect("a log file");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(whole)
        .arg(&folder)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().expect("a log file"))
        .stderr(log)
        .process_group(0);
    if unprivileged && is_root() {
        // PostgreSQL does not run as root.
        let (uid, gid) = unprivileged_user();
        std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).expect("the folder can be given away");
        command.uid(uid).gid(gid);
    }
    Kept { shell: command.spawn().expect("a shell"), folder }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0).unwrap_or(false)
}

fn unprivileged_user() -> (u32, u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let user = |name: &str| {
        let fields: Vec<&str> = passwd.lines().find(|line| line.starts_with(&format!("{name}:")))?.split(':').collect();
        Some((fields[2].parse().ok()?, fields[3].parse().ok()?))
    };
    user("postgres").or_else(|| user("nobody")).expect("a user who is not root")
}

fn log_of(kept: &Kept) -> String {
    let mut text = String::new();
    let _ = std::fs::File::open(kept.folder.join("log")).and_then(|mut log| log.read_to_string(&mut text));
    text
}

fn wait_until(kept: &mut Kept, what: &str, mut is_up: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_up() {
        let gone = kept.shell.try_wait().expect("the shell can be asked").is_some();
        let late = began.elapsed() > START_PATIENCE;
        assert!(!gone && !late, "{what} does not start:\n{}", log_of(kept));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn answers(port: u16, request: &str, expected: &str) -> bool {
    use std::io::Write;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(mut socket) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let _ = socket.set_read_timeout(Some(Duration::from_secs(2)));
    let mut answer = [0; 64];
    let sent = socket.write_all(request.as_bytes()).and_then(|()| socket.read(&mut answer));
    sent.is_ok_and(|len| String::from_utf8_lossy(&answer[..len]).contains(expected))
}

/// Where a program is: on the PATH, or where `make test` puts what it installs.
fn program(name: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain([own]).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A PostgreSQL server of this test process.
pub struct Postgres {
    /// Its port on loopback.
    pub port: u16,
    kept: Kept,
}

impl Postgres {
    /// Ends the server, as a maintenance window does.
    pub fn stop(self) {
        self.kept.stop();
    }

    /// The server, started by the first caller.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    /// A server of one's own.
    pub fn start() -> Self {
        Self::start_with("off")
    }

    /// The same, of which every commit is on the disk.
    pub fn start_durable() -> Self {
        Self::start_with("on")
    }

    fn start_with(fsync: &str) -> Self {
        let bin = postgres_bin();
        let port = free_port();
        let prepare = "\"$1/initdb\" -D data -U postgres -A trust -E UTF8 --no-sync >/dev/null;";
        let start = "\"$1/postgres\" -D data -p \"$2\" -c listen_addresses=127.0.0.1 -c unix_socket_directories='' \
             -c max_connections=300 -c fsync=\"$3\" -c log_min_messages=error &";
        let args = [bin.to_str().expect("a path"), &port.to_string(), fsync];
        let mut kept = keep("postgres", prepare, start, &args, true);
        wait_until(&mut kept, "PostgreSQL", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
            // On a thread of its own: the caller may be inside a runtime.
            std::thread::spawn(move || runtime.block_on(async { sqlx::PgConnection::connect(&url).await.is_ok() }))
                .join()
                .unwrap_or(false)
        });
        Self { port, kept }
    }

    /// Stops the server and keeps its data. Returns when it answers nobody any more.
    pub async fn interrupt(&self) {
        self.kept.tell("stop");
        super::eventually("PostgreSQL is down", async || (!self.is_up().await).then_some(())).await;
    }

    /// Starts it again, on the same port and data.
    pub async fn resume(&self) {
        self.kept.tell("start");
        super::eventually("PostgreSQL is up again", async || self.is_up().await.then_some(())).await;
    }

    async fn is_up(&self) -> bool {
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        sqlx::PgConnection::connect(&url).await.is_ok()
    }

    /// The URL of a database that nobody else uses.
    pub async fn new_database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        let mut connection = sqlx::PgConnection::connect(&admin).await.expect("PostgreSQL is up");
        let statement = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::query(statement).execute(&mut connection).await.expect("a database");
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }
}

fn postgres_bin() -> PathBuf {
    let on_path = program("initdb").and_then(|initdb| Some(initdb.parent()?.to_owned()));
    let of_distribution = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        versions.flatten().map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").is_file()).max()
    };
    let real = |bin: PathBuf| std::fs::canonicalize(bin.join("initdb")).ok()?.parent().map(Path::to_owned);
    of_distribution()
        .or_else(|| on_path.and_then(real))
        .expect("PostgreSQL is not installed: run `make test`, or `tests/install-tools.sh`")
}

/// An S3 store of this test process: MinIO, or Garage where that is all there is.
pub struct ObjectStore {
    /// What it is: `minio` or `garage`.
    pub kind: &'static str,
    /// Where it answers.
    pub endpoint: String,
    /// Its keys.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: String,
    /// The region that it wants in signatures.
    pub region: &'static str,
    kept: Kept,
}

impl ObjectStore {
    /// The server, started by the first caller.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<ObjectStore> = OnceLock::new();
        SERVER.get_or_init(|| match (program("minio"), program("garage")) {
            (Some(minio), _) => Self::start_minio(&minio),
            (None, Some(garage)) => Self::start_garage(&garage),
            (None, None) => {
                panic!("neither MinIO nor Garage is installed: run `make test`, or `tests/install-tools.sh`")
            }
        })
    }

    fn start_minio(minio: &Path) -> Self {
        let (port, console) = (free_port(), free_port());
        // With the domain it answers to virtual hosts, too.
        let script = "MINIO_ROOT_USER=callvault-tests MINIO_ROOT_PASSWORD=callvault-tests-secret MINIO_DOMAIN=store.test \
             \"$1\" server data --quiet --address \"127.0.0.1:$2\" --console-address \"127.0.0.1:$3\" &";
        let mut kept = keep(
            "minio",
            "",
            script,
            &[minio.to_str().expect("a path"), &port.to_string(), &console.to_string()],
            false,
        );
        wait_until(&mut kept, "MinIO", || {
            answers(port, "GET /minio/health/ready HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", " 200 ")
        });
        Self {
            kind: "minio",
            endpoint: format!("http://127.0.0.1:{port}"),
            access_key_id: "callvault-tests".to_owned(),
            secret_access_key: "callvault-tests-secret".to_owned(),
            region: "us-east-1",
            kept,
        }
    }

    fn start_garage(garage: &Path) -> Self {
        let (port, rpc) = (free_port(), free_port());
        let access_key_id = format!("GK{}", "c".repeat(24));
        let secret_access_key = "d".repeat(64);
        let prepare = "cat >garage.toml <<EOF\nmetadata_dir = \"meta\"\ndata_dir = \"data\"\ndb_engine = \"sqlite\"\n\
             replication_factor = 1\nrpc_bind_addr = \"127.0.0.1:$3\"\nrpc_public_addr = \"127.0.0.1:$3\"\n\
             rpc_secret = \"$(printf 'e%.0s' $(seq 64))\"\n[s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:$2\"\n\
             root_domain = \".s3.garage\"\nEOF\n";
        let start = "\"$1\" -c garage.toml server &";
        let args = [garage.to_str().expect("a path"), &port.to_string(), &rpc.to_string()];
        let mut kept = keep("garage", prepare, start, &args, false);
        wait_until(&mut kept, "Garage", || answers(port, "GET / HTTP/1.0\r\n\r\n", "HTTP/"));
        let store = Self {
            kind: "garage",
            endpoint: format!("http://127.0.0.1:{port}"),
            access_key_id,
            secret_access_key,
            region: "garage",
            kept,
        };
        let node = store.garage(&["node", "id", "-q"]).expect("a node id");
        let node = node.split('@').next().unwrap_or_default().trim().to_owned();
        store.garage(&["layout", "assign", "-z", "z", "-c", "1G", &node]).expect("a layout");
        store.garage(&["layout", "apply", "--version", "1"]).expect("a layout");
        let (id, secret) = (store.access_key_id.clone(), store.secret_access_key.clone());
        store.garage(&["key", "import", "--yes", "-n", "tests", &id, &secret]).expect("a key");
        store
    }

    fn garage(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new(program("garage")?);
        let output = command.args(["-c", "garage.toml"]).args(args).current_dir(&self.kept.folder).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The name of a bucket that nobody else uses.
    pub async fn new_bucket(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("calls-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        if self.kind == "garage" {
            self.garage(&["bucket", "create", &name]).expect("a bucket");
            self.garage(&["bucket", "allow", "--read", "--write", "--owner", &name, "--key", &self.access_key_id])
                .expect("a grant");
            return name;
        }
        let endpoint = self.endpoint.parse().expect("a URL");
        let bucket =
            rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, name.clone(), self.region).expect("a bucket");
        let keys = rusty_s3::Credentials::new(&self.access_key_id, &self.secret_access_key);
        let url = rusty_s3::S3Action::sign(&bucket.create_bucket(&keys), Duration::from_secs(600));
        let http = reqwest::Client::new();
        // MinIO says that it is ready before it makes buckets.
        super::eventually("a bucket is made", async || {
            let answer = http.put(url.clone()).send().await.expect("the store answers");
            answer.status().is_success().then_some(())
        })
        .await;
        name
    }
}

/// An nginx before several nodes, as people run it. Ends when it is dropped.
pub struct Nginx {
    kept: Option<Kept>,
}

impl Nginx {
    /// Balances that port over those.
    pub fn start(port: u16, nodes: &[u16]) -> Self {
        let servers: String = nodes.iter().map(|node| format!("server 127.0.0.1:{node} max_fails=0;\n")).collect();
        // A callback may be repeated: the second one changes nothing.
        let config = format!(
            "worker_processes 1; events {{ worker_connections 1024; }}\n\
             http {{ access_log off; upstream nodes {{ {servers} }}\n\
             server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://nodes; proxy_set_header Host $http_host;\n\
             proxy_next_upstream error timeout non_idempotent; }} }} }}\n",
        );
        Self::with_config(port, &config)
    }

    /// One with that configuration, of which the rest is where its files lie. Answers on that port.
    pub fn with_config(port: u16, config: &str) -> Self {
        let nginx = program("nginx").or_else(|| Some(PathBuf::from("/usr/sbin/nginx")).filter(|file| file.is_file()));
        let nginx = nginx.expect("nginx is not installed: run `make test`, or `tests/install-tools.sh`");
        let user = if is_root() { "user root;" } else { "" };
        let folders = "client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; \
                       uwsgi_temp_path uwsgi; scgi_temp_path scgi;";
        let config = config.replacen("http {", &format!("http {{ {folders}"), 1);
        let said = if config.contains("error_log ") { "" } else { "error_log stderr warn;" };
        let config = format!("daemon off; pid nginx.pid; {said} {user}\n{config}");
        let prepare = "cat >nginx.conf <<'EOF'\n".to_owned() + &config + "EOF\n";
        let start = "\"$1\" -p \"$PWD\" -c nginx.conf &";
        let mut kept = keep("nginx", &prepare, start, &[nginx.to_str().expect("a path")], false);
        wait_until(&mut kept, "nginx", || answers(port, "GET /healthz HTTP/1.0\r\n\r\n", " 200 "));
        Self { kept: Some(kept) }
    }

    /// What it said, and whom it answered what.
    pub fn log(&self) -> String {
        log_of(self.kept.as_ref().expect("it runs until it is dropped"))
    }

    /// The process that started it.
    pub fn pid(&self) -> u32 {
        self.kept.as_ref().expect("it runs until it is dropped").shell.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kept.take().into_iter().for_each(Kept::stop);
    }
}
