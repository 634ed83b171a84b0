//! The verbs of the command line, one file each.

pub(crate) mod bootstrap;
pub(crate) mod check;
pub(crate) mod decode;
pub(crate) mod fetch;
pub(crate) mod promote;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod verify;
pub(crate) mod wait;
pub(crate) mod waldump;
