//! Copies a directory tree with two processes: one reads it, the other writes it.
//!
//! ```sh
//! cargo run --release --example copy_tree FROM TO
//! ```
//!
//! TO must be empty or not exist. The program copies directories, files, symbolic links and the permissions (without
//! set-user-id, set-group-id and sticky bits). It names other files, and leaves them out.
//!
//! The program starts itself as the writing process. Each message is one frame. Its tag has the kind of the frame, and
//! the mode or the checksum; its bytes are the path or the content.
//!
//! ```text
//!   reader                                  writer
//!     DIR, mode   "src"                ─▶     mkdir
//!     FILE, mode  "src/lib.rs"         ─▶     create
//!     DATA        up to 1 MiB          ─▶     write, any number of times
//!     CHECK, checksum                  ─▶     compare, close
//!     LINK        "latest\0src"        ─▶     symlink
//!     END                              ─▶     permissions of the directories
//!                                      ◀─   DONE, or FAILED with the reason
//! ```
//!
//! The writer does not trust the reader: it makes files only in TO and in directories that it made there itself, never
//! through a link, and never replaces an existing file.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, DirEntry, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use narrows::SharedMemoryStream;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    let (prefix, done) = match &args[..] {
        [flag, to] if flag == "--writer" => ("writer", write_for_parent(Path::new(to))), // Started by the reader.
        [from, to] => ("error", copy(Path::new(from), Path::new(to))),
        _ => ("error", Err("usage: copy_tree FROM TO".into())),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{prefix}: {error}");
        ExitCode::FAILURE
    })
}

// The kind of a frame: the low half of its tag. The high half is the mode, or the checksum.
const DIR: u32 = 1;
const FILE: u32 = 2;
const DATA: u32 = 3;
const CHECK: u32 = 4;
const LINK: u32 = 5;
const END: u32 = 6;
const DONE: u32 = 7;
const FAILED: u32 = 8;

const CHUNK: usize = 1 << 20;

fn tag(kind: u32, value: u32) -> u64 {
    u64::from(value) << 32 | u64::from(kind)
}

fn parts(tag: u64) -> (u32, u32) {
    ((tag & 0xffff_ffff) as u32, (tag >> 32) as u32)
}

// ---- The reading process ----

fn copy(from: &Path, to: &Path) -> Outcome<ExitCode> {
    let entries = list(from)?;
    let mut command = Command::new(env::current_exe()?);
    command.arg("--writer").arg(to);
    let (mut child, mut stream) = SharedMemoryStream::spawn(command)?;

    let mut reader = Reader { from, buffer: vec![0; CHUNK], files: 0, bytes: 0 };
    let start = Instant::now();
    let sent = reader.send_all(&mut stream, &entries);
    let done = sent.and_then(|()| Ok(stream.send_tagged(&[], tag(END, 0))?));
    let result = writers_result(&mut stream, done);
    drop(stream);
    let status = child.wait()?;
    if status.code().is_none() {
        return Err(format!("the writing process was killed ({status})").into());
    }
    result?;
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), reader.bytes);
    let rate = bytes as f64 / 1e6 / seconds;
    println!("{} files, {bytes} bytes, {seconds:.2} s, {rate:.0} MB/s", reader.files);
    Ok(ExitCode::SUCCESS)
}

/// Returns all files below a directory, in the order of names. A directory comes before the files in it.
fn list(from: &Path) -> Outcome<Vec<PathBuf>> {
    if !fs::metadata(from).map_err(|error| at(from, error))?.is_dir() {
        return Err(format!("{} is not a directory", from.display()).into());
    }
    let mut entries = Vec::new();
    list_into(from, &mut entries).map_err(|error| at(from, error))?;
    Ok(entries)
}

fn list_into(folder: &Path, entries: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut inside = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    inside.sort_by_key(DirEntry::file_name);
    for entry in inside {
        entries.push(entry.path());
        if entry.file_type()?.is_dir() {
            list_into(&entry.path(), entries)?;
        }
    }
    Ok(())
}

/// Returns the result of the copy. If the writer gave up, that is the writer's own error, and not that a send failed.
fn writers_result(stream: &mut SharedMemoryStream, sent: Outcome<()>) -> Outcome<()> {
    if let Err(error) = &sent {
        if !error.is::<narrows::SendError>() {
            return sent;
        }
    }
    let mut text = Vec::new();
    let answer = stream.recv_into(&mut text)?;
    match parts(answer.tag).0 {
        DONE => sent,
        FAILED => Err(format!("the writer: {}", String::from_utf8_lossy(&text)).into()),
        kind => Err(format!("the writer sent a frame of kind {kind}").into()),
    }
}

struct Reader<'a> {
    from: &'a Path,
    buffer: Vec<u8>,
    files: u64,
    bytes: u64,
}

impl Reader<'_> {
    fn send_all(&mut self, stream: &mut SharedMemoryStream, entries: &[PathBuf]) -> Outcome<()> {
        for path in entries {
            let name = path.strip_prefix(self.from)?.as_os_str().as_bytes();
            let metadata = fs::symlink_metadata(path).map_err(|error| at(path, error))?;
            match metadata.file_type() {
                kind if kind.is_dir() => {
                    stream.send_tagged(name, tag(DIR, metadata.permissions().mode()))?;
                }
                kind if kind.is_file() => self.send_file(stream, path, name)?,
                kind if kind.is_symlink() => {
                    let target = fs::read_link(path).map_err(|error| at(path, error))?;
                    let both = [name, target.as_os_str().as_bytes()].join(&0);
                    stream.send_tagged(&both, tag(LINK, 0))?;
                }
                _ => eprintln!("left out, neither file nor link: {}", path.display()),
            }
        }
        Ok(())
    }

    fn send_file(&mut self, stream: &mut SharedMemoryStream, path: &Path, name: &[u8]) -> Outcome<()> {
        let mut file = File::open(path).map_err(|error| at(path, error))?;
        let mode = file.metadata()?.permissions().mode();
        stream.send_tagged(name, tag(FILE, mode))?;
        let mut checksum = Checksum::new();
        loop {
            let len = file.read(&mut self.buffer).map_err(|error| at(path, error))?;
            if len == 0 {
                break;
            }
            checksum.update(&self.buffer[..len]);
            stream.send_tagged(&self.buffer[..len], tag(DATA, 0))?;
            self.bytes += len as u64;
        }
        self.files += 1;
        Ok(stream.send_tagged(&[], tag(CHECK, checksum.0))?)
    }
}

// ---- The writing process ----

fn write_for_parent(to: &Path) -> Outcome<ExitCode> {
    let mut stream = SharedMemoryStream::from_parent()?;
    let Err(error) = Writer::new(to).and_then(|mut writer| writer.receive_all(&mut stream)) else {
        stream.send_tagged(&[], tag(DONE, 0))?;
        return Ok(ExitCode::SUCCESS);
    };
    // The reader prints the error; if the reader has ended, this process does.
    let reported = stream.send_tagged(error.to_string().as_bytes(), tag(FAILED, 0));
    if reported.is_ok() { Ok(ExitCode::FAILURE) } else { Err(error) }
}

struct Writer<'a> {
    to: &'a Path,
    /// The directories that were made, and the modes that they get at the end.
    made: BTreeMap<PathBuf, u32>,
    open: Option<Open>,
}

struct Open {
    path: PathBuf,
    file: File,
    checksum: Checksum,
}

impl<'a> Writer<'a> {
    fn new(to: &'a Path) -> Outcome<Self> {
        match fs::create_dir(to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            made => made.map_err(|error| at(to, error))?,
        }
        if fs::read_dir(to).map_err(|error| at(to, error))?.next().is_some() {
            return Err(format!("{} is not empty", to.display()).into());
        }
        Ok(Self { to, made: BTreeMap::new(), open: None })
    }

    fn receive_all(&mut self, stream: &mut SharedMemoryStream) -> Outcome<()> {
        let mut frame = Vec::new();
        loop {
            let (kind, value) = parts(stream.recv_into(&mut frame)?.tag);
            match (kind, self.open.take()) {
                (DIR, None) => self.make_dir(&frame, value)?,
                (FILE, None) => self.open = Some(self.create(&frame, value)?),
                (DATA, Some(open)) => self.open = Some(open.write(&frame)?),
                (CHECK, Some(open)) => open.check(value)?,
                (LINK, None) => self.make_link(&frame)?,
                (END, None) => return self.finish(),
                _ => return Err(format!("a frame of kind {kind} is out of place").into()),
            }
        }
    }

    fn make_dir(&mut self, name: &[u8], mode: u32) -> Outcome<()> {
        let path = self.path_of(name)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| at(&path, error))?;
        self.made.insert(path, mode);
        Ok(())
    }

    fn create(&self, name: &[u8], mode: u32) -> Outcome<Open> {
        let path = self.path_of(name)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| at(&path, error))?;
        file.set_permissions(permissions(mode)).map_err(|error| at(&path, error))?;
        Ok(Open { path, file, checksum: Checksum::new() })
    }

    fn make_link(&self, both: &[u8]) -> Outcome<()> {
        let mut halves = both.splitn(2, |byte| *byte == 0);
        let (Some(name), Some(target)) = (halves.next(), halves.next()) else {
            return Err("a link without a target".into());
        };
        let path = self.path_of(name)?;
        symlink(OsStr::from_bytes(target), &path).map_err(|error| at(&path, error))?;
        Ok(())
    }

    /// Sets the modes of the directories, inner ones first: a mode may forbid this process to enter the directory.
    fn finish(&self) -> Outcome<()> {
        for (path, mode) in self.made.iter().rev() {
            fs::set_permissions(path, permissions(*mode)).map_err(|error| at(path, error))?;
        }
        Ok(())
    }

    /// Returns the path of a name from the reader, which must be in TO or in a directory that was made here. Links are
    /// not among these directories, so no file is ever written through a link.
    fn path_of(&self, name: &[u8]) -> Outcome<PathBuf> {
        let name = Path::new(OsStr::from_bytes(name));
        let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
        let path = self.to.join(name);
        let known = path.parent().is_some_and(|parent| parent == self.to || self.made.contains_key(parent));
        if !plain || !known || name.as_os_str().is_empty() {
            return Err(format!("refused to write outside of the directory: {name:?}").into());
        }
        Ok(path)
    }
}

impl Open {
    fn write(mut self, bytes: &[u8]) -> Outcome<Self> {
        self.checksum.update(bytes);
        self.file.write_all(bytes).map_err(|error| at(&self.path, error))?;
        Ok(self)
    }

    fn check(self, expected: u32) -> Outcome<()> {
        if self.checksum.0 == expected {
            return Ok(());
        }
        Err(format!("{}: the checksum is wrong", self.path.display()).into())
    }
}

/// The FNV-1a hash, which is short enough for an example.
struct Checksum(u32);

impl Checksum {
    fn new() -> Self {
        Self(0x811c_9dc5)
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    }
}

fn permissions(mode: u32) -> Permissions {
    Permissions::from_mode(mode & 0o777)
}

fn at(path: &Path, error: io::Error) -> String {
    format!("{}: {error}", path.display())
}
