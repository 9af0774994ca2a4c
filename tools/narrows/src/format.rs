//! Formats errors with advice, and times and sizes, for people.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use narrows::{BindError, ConnectError, RejectCode};

/// Adds what to do when a server cannot be reached.
pub(crate) fn unreachable(path: &Path, error: &ConnectError) -> anyhow::Error {
    let path = path.display();
    let advice = match error {
        // Only for the calls that use the path: others fail for other reasons.
        ConnectError::Io { doing, source } if doing.starts_with("connecting") => match source.kind() {
            ErrorKind::NotFound => {
                "nothing stands there. Is the path right, and the server started? \
                 (`narrows serve-echo PATH` starts one to try with)"
            }
            ErrorKind::ConnectionRefused => {
                "no server listens there any more: it ended without removing its path. Start it again"
            }
            ErrorKind::PermissionDenied => {
                "the socket or a directory above it is not open to this user. Run as the server's user"
            }
            _ => "",
        },
        ConnectError::NotASocket => "the path is something else than a server's",
        ConnectError::Rejected { code: RejectCode::NotAuthorized, .. } => {
            "the server does not let this user in. Run as its user, or see its Options::authorize"
        }
        ConnectError::Rejected { code: RejectCode::Refused, .. } => {
            "the server's program decides which clients it takes, and gave this reason"
        }
        ConnectError::Rejected { code: RejectCode::Busy, .. } => {
            "it has as many clients as it takes. Try later"
        }
        ConnectError::NotAuthorized { .. } => {
            "the server runs as another user, which is not trusted. Run as that user, or as root"
        }
        ConnectError::Timeout => {
            "something listens there and does not answer: stopped, overloaded, or no narrows server"
        }
        ConnectError::BacklogFull => {
            "the queue of waiting clients is full: the server does not accept. `ss -xlp` names its process"
        }
        ConnectError::BadAnswer(_) => "what listens there does not speak narrows, or another version of it",
        ConnectError::NoCalls => "the server serves streams, not calls: leave out `--calls`",
        _ => "",
    };
    match advice {
        "" => anyhow::anyhow!("cannot connect to {path}: {error}"),
        advice => anyhow::anyhow!("cannot connect to {path}: {error}\n  {advice}"),
    }
}

/// Adds what to do when a path cannot be bound.
pub(crate) fn unbindable(path: &Path, error: &BindError) -> anyhow::Error {
    let path = path.display();
    let advice = match error {
        BindError::InUse => "a server lives there: end it, or choose another path",
        BindError::NotASocket => "something else stands there, which is left alone: choose another path",
        BindError::Locked => "another process holds the directory's lock: choose a directory of your own",
        BindError::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => "make the directory first",
            ErrorKind::PermissionDenied => "choose a directory that this user may write to",
            _ => "",
        },
        _ => "",
    };
    match advice {
        "" => anyhow::anyhow!("cannot serve at {path}: {error}"),
        advice => anyhow::anyhow!("cannot serve at {path}: {error}\n  {advice}"),
    }
}

/// Formats an error with all its causes, each once: a cause that is already in the text of its error is not repeated.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        known if known.contains(&cause) => text,
        known => format!("{known}: {cause}"),
    })
}

/// Formats a time with three digits and its unit.
pub(crate) fn time(time: Duration) -> String {
    let nanos = time.as_secs_f64() * 1e9;
    let (value, unit) = match nanos {
        n if n < 1e3 => (n, "ns"),
        n if n < 1e6 => (n / 1e3, "us"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    format!("{} {unit}", three(value))
}

/// Formats a size in the largest unit without a fraction.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

/// Formats a number with three digits.
pub(crate) fn three(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_shown_twice() {
        let source = std::io::Error::from_raw_os_error(11);
        let error = anyhow::Error::from(ConnectError::Io { doing: "x".into(), source }).context("trying");
        assert_eq!(causes(&error), "trying: x: Resource temporarily unavailable (os error 11)");
    }

    #[test]
    fn advice_about_a_path_is_given_where_the_path_was_refused() {
        let text = |doing: &str, kind: ErrorKind| {
            let error = ConnectError::Io { doing: doing.into(), source: kind.into() };
            unreachable(Path::new("x"), &error).to_string()
        };
        assert!(text("connecting to x", ErrorKind::PermissionDenied).contains("not open to this user"));
        // Caused by a filter, or by a security module.
        assert!(!text("mapping the memory", ErrorKind::PermissionDenied).contains("not open to this user"));
        assert!(!text("mapping the memory", ErrorKind::NotFound).contains("is the path right"));
    }

    #[test]
    fn numbers_are_written_with_three_digits_and_a_unit() {
        let times = [(7, "7.00 ns"), (1_500, "1.50 us"), (12_345_678, "12.3 ms"), (250_000_000_000, "250 s")];
        for (nanos, text) in times {
            assert_eq!(time(Duration::from_nanos(nanos)), text);
        }
        for (bytes, text) in
            [(0, "0 B"), (100, "100 B"), (1536, "1536 B"), (65_536, "64 KiB"), (3 << 20, "3 MiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
