//! A Python worker with onnx, onnxruntime and numpy, in a virtual environment that is made on first use.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use serde_json::{Value, json};

use super::target_dir;

const REQUIREMENTS: &str = include_str!("requirements.txt");
const WORKER: &str = include_str!("worker.py");

/// The interpreter of the virtual environment that has [`REQUIREMENTS`].
///
/// Panics with the command to run when Python 3 or its `venv` module is missing, or pip fails.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| match std::env::var_os("ONNX_QUANT_VENV") {
        Some(dir) => {
            let python = interpreter(Path::new(&dir));
            assert!(python.exists(), "ONNX_QUANT_VENV: there is no {}", python.display());
            python
        }
        None => make_venv(),
    })
}

fn interpreter(venv: &Path) -> PathBuf {
    if cfg!(windows) { venv.join("Scripts/python.exe") } else { venv.join("bin/python") }
}

/// Makes `target/onnx-venv`, unless it is there with the same requirements.
fn make_venv() -> PathBuf {
    let venv = target_dir().join("onnx-venv");
    once(&venv, REQUIREMENTS, |venv| {
        let system = ["python3", "python"].into_iter().find(|p| {
            Command::new(p)
                .args(["-c", "import sys; sys.exit(sys.version_info < (3, 10))"])
                .status()
                .is_ok_and(|s| s.success())
        });
        let system = system.unwrap_or_else(|| {
            panic!("the tests compare with ONNX Runtime and need python3 (3.10 or newer) on the PATH")
        });
        must(
            Command::new(system).args(["-m", "venv", "--clear"]).arg(venv),
            "python3 cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv",
        );
        let list = venv.join("requirements.txt");
        fs::write(&list, REQUIREMENTS).unwrap();
        must(
            Command::new(interpreter(venv))
                .args(["-m", "pip", "install", "--quiet", "--only-binary=:all:", "-r"])
                .arg(&list),
            "pip cannot install onnx, onnxruntime and openvino",
        );
    });
    interpreter(&venv)
}

/// Fills `dir` with `make`, once for all test binaries that may run at the same time, and again when
/// `version` changes. An interrupted run leaves no stamp, and the next one starts over.
pub fn once(dir: &Path, version: &str, make: impl FnOnce(&Path)) {
    let stamp = dir.join(".complete");
    let is_done = || fs::read_to_string(&stamp).is_ok_and(|s| s == version);
    if is_done() {
        return;
    }
    fs::create_dir_all(dir.parent().unwrap()).unwrap();
    let lock = fs::File::create(dir.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !is_done() {
        if dir.exists() {
            fs::remove_dir_all(dir).unwrap();
        }
        make(dir);
        fs::write(&stamp, version).unwrap();
    }
}

/// Runs a command that has to succeed; `otherwise` says what to do when it does not.
pub fn must(command: &mut Command, otherwise: &str) {
    match command.stdin(Stdio::null()).output() {
        Ok(out) if out.status.success() => {}
        Ok(out) => {
            panic!("{otherwise}\n{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr))
        }
        Err(e) => panic!("{otherwise}\n{command:?}: {e}"),
    }
}

struct Worker {
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Worker {
    fn start() -> Self {
        let mut child = Command::new(python())
            .args(["-c", WORKER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the Python worker starts");
        let requests = child.stdin.take().unwrap();
        let replies = BufReader::new(child.stdout.take().unwrap());
        Worker { child, requests, replies }
    }

    /// `None` when the process died, which a malformed model can bring about in native code.
    fn ask(&mut self, request: &Value) -> Option<Value> {
        writeln!(self.requests, "{request}").ok()?;
        self.requests.flush().ok()?;
        let mut line = String::new();
        self.replies.read_line(&mut line).ok().filter(|&n| n > 0)?;
        Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("worker: {e} in {line:?}")))
    }
}

/// Sends one request to the worker (see `worker.py`) and returns what it answers, or Python's
/// exception as text. The worker starts with the first request and serves the whole test binary.
pub fn request(op: &str, mut arguments: Value) -> Result<Value, String> {
    static WORKER: Mutex<Option<Worker>> = Mutex::new(None);
    arguments["op"] = json!(op);
    // A test that panicked while it held the worker must not fail the others: drop the worker and go on.
    let mut slot = WORKER.lock().unwrap_or_else(|poisoned| {
        let mut slot = poisoned.into_inner();
        *slot = None;
        WORKER.clear_poison();
        slot
    });
    let worker = slot.get_or_insert_with(Worker::start);
    let Some(mut reply) = worker.ask(&arguments) else {
        let status = worker.child.wait();
        *slot = None;
        return Err(format!("the Python worker died: {status:?}"));
    };
    match reply.get("error") {
        Some(error) => Err(error.as_str().unwrap_or_default().to_string()),
        None => Ok(reply["ok"].take()),
    }
}

/// Runs Python source and returns what its `main(argument)` returns; both sides are JSON.
pub fn call(script: &str, argument: Value) -> Result<Value, String> {
    request("call", json!({ "script": script, "argument": argument }))
}
