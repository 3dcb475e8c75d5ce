//! A host name whose address a test changes while another process runs.
//!
//! A few lines of C replace the C library's look-up of names (`LD_PRELOAD`). For this one name they
//! return the address in a file, and the real result for all others.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use super::shim;

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int lookup(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    lookup *real = (lookup *)dlsym(RTLD_NEXT, "getaddrinfo");
    char address[64];
    if (node && strcmp(node, "primary.test") == 0) {
        FILE *file = fopen(getenv("NAME_FILE"), "r");
        if (!file) return EAI_NONAME;
        char *line = fgets(address, sizeof address, file);
        fclose(file);
        if (!line) return EAI_AGAIN;
        node = address;
    }
    return real(node, service, hints, found);
}
"#;

/// A name, and the file with its address.
#[derive(Debug)]
pub(crate) struct HostName {
    dir: PathBuf,
}

impl HostName {
    pub(crate) const NAME: &str = "primary.test";

    /// Makes the name, with its files in this directory. It has no address yet.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Has a process look the name up here.
    pub(crate) fn known_to(&self, process: &mut Command) {
        shim::preload(process, &self.dir.join("names.so"), SHIM);
        process.env("NAME_FILE", self.file());
    }

    /// Changes the address; with `None` the look-up fails.
    pub(crate) fn lead_to(&self, address: Option<Ipv4Addr>) {
        let Some(address) = address else {
            return fs::remove_file(self.file()).expect("it had an address");
        };
        // Renamed, so that no process reads a part of it.
        let new = self.dir.join("name.new");
        fs::write(&new, address.to_string()).expect("the address is written");
        fs::rename(new, self.file()).expect("the file is replaced");
    }

    fn file(&self) -> PathBuf {
        self.dir.join("name")
    }
}
