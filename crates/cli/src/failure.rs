//! How the program fails: one line on stderr and an exit code.

use std::{error::Error, fmt, io};

/// A command did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What happened and, where it helps, what to do. `None` if it was already told.
    message: Option<String>,
    code: u8,
}

impl Failure {
    /// A server refused, or could not be reached, or a result is bad. Exit code 1.
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { message: Some(message.to_string()), code: 1 }
    }

    /// The command line does not make sense. Exit code 2, as clap's own errors.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { message: Some(message.to_string()), code: 2 }
    }

    /// What was read from stdin does not make sense. Exit code 3, as etcdctl's.
    pub(crate) fn input(message: impl fmt::Display) -> Self {
        Self { message: Some(message.to_string()), code: 3 }
    }

    /// Everything has been told; only the exit code 1 is left.
    pub(crate) const fn told() -> Self {
        Self { message: None, code: 1 }
    }

    /// The same failure, once its message has been told.
    pub(crate) fn into_told(self) -> Self {
        Self { message: None, code: self.code }
    }

    pub(crate) const fn is_usage(&self) -> bool {
        self.code == 2
    }

    pub(crate) const fn code(&self) -> u8 {
        self.code
    }

    pub(crate) fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message().unwrap_or("failed"))
    }
}

/// Writing to stdout failed. A closed pipe (`kontiki get … | head -1`) is no failure to tell of.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::told() } else { Self::new(error) }
    }
}

/// The error and what caused it, on one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        // Some errors already tell their cause.
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}
