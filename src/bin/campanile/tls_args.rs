//! The options for certificates.

use std::{
    fs,
    path::{Path, PathBuf},
};

use campanile::{Redis, transport::redis::RedisBuilder};
use clap::Args;

use crate::command_error::{CommandError, chain};

// The certificates for rediss:// URLs.
#[derive(Debug, Args)]
#[command(next_help_heading = "With rediss://")]
pub(crate) struct TlsArgs {
    /// Trusts the certificates in this PEM file instead of the system's.
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Presents the certificate in this PEM file, with its --key.
    #[arg(long, global = true, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The key of --cert, a PEM file.
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Accepts any certificate of the server: the password and all messages can be read on the way.
    #[arg(long, global = true)]
    insecure: bool,
}

impl TlsArgs {
    /// Adds the certificates to a connection. An error names the option and the file.
    pub(crate) fn apply(&self, mut redis: RedisBuilder) -> Result<RedisBuilder, CommandError> {
        // Each option is checked on a builder without the other options, so that an error can name
        // its file.
        let new_builder = || Redis::builder("rediss://localhost/");
        if let Some(ca) = &self.ca {
            let pem = read("--ca", ca)?;
            let option = format!("--ca {}", ca.display());
            check(new_builder().ca_certificate(&pem), &option)?;
            redis = redis.ca_certificate(pem);
        }
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let (pem, key_pem) = (read("--cert", cert)?, read("--key", key)?);
                let options = format!("--cert {} --key {}", cert.display(), key.display());
                check(new_builder().client_certificate(&pem, &key_pem), &options)?;
                redis = redis.client_certificate(pem, key_pem);
            }
            (None, None) => {}
            _ => {
                return Err(CommandError::Usage(
                    "--cert and --key belong together".into(),
                ));
            }
        }
        if self.insecure {
            redis = redis.danger_accept_invalid_certificates();
        }
        if self.ca.is_some() || self.cert.is_some() || self.insecure {
            redis.check()?;
        }
        Ok(redis)
    }
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>, CommandError> {
    let failed = |error| {
        let path = path.display();
        CommandError::Usage(format!("{option} {path} cannot be read: {}", chain(&error)))
    };
    fs::read(path).map_err(failed)
}

fn check(redis: RedisBuilder, options: &str) -> Result<(), CommandError> {
    let failed = |error| CommandError::Usage(format!("{options}: {}", chain(&error)));
    redis.check().map_err(failed)
}
