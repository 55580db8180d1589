//! Errors as the specification has them (section "Error").

use std::fmt;

use serde_json::json;

/// The well-known codes that are used here; from 100 on they are a plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration is of a version that is not supported.
    Version = 1,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// The input cannot be decoded.
    Undecodable = 6,
    /// The network configuration is wrong.
    Configuration = 7,
    /// The runtime should try again later.
    Later = 11,
    /// STATUS: no pod can be added now.
    Unavailable = 50,
    /// CHECK: the pod is not programmed as the runtime says.
    NotProgrammed = 100,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The code.
    pub code: Code,
    /// What is wrong, in short.
    pub message: String,
    /// More of it, and what to do; may be empty.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// More of it, and what to do.
    pub fn with(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

/// An error, to be printed in the version of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The version of the configuration.
    pub version: String,
    /// Why.
    pub error: Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printed = json!({
            "cniVersion": self.version,
            "code": self.error.code as u32,
            "msg": self.error.message,
            "details": self.error.details,
        });
        write!(f, "{printed}")
    }
}
