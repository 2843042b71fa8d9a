//! In which keys two configurations differ, and which of these wait for a restart.
//!
//! Invariant: every key is looked at: a field that is not named here does not compile.

use super::{
    Config, CustodianConfig, CustodyConfig, EscrowConfig, KmsConfig, LogConfig, OnboardConfig,
    Pkcs11Config, SessionsConfig, TpmConfig, UplinkConfig,
};
use crate::audit::AuditLimits;
use crate::spool::SpoolLimits;
use crate::ttl::Lifetimes;

/// Keys in which two configurations differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that a running agent can follow.
    pub live: Vec<&'static str>,
    /// Those that count from the next start on.
    pub restart: Vec<&'static str>,
}

/// Notes the keys whose fields differ; a field without a key is looked at elsewhere.
macro_rules! compare {
    ($list:expr, $type:ident, $from:expr, $to:expr, { $($field:ident $(=> $key:literal)?),+ $(,)? }) => {{
        let ($type { $($field),+ }, other) = ($from, $to);
        $(compare!(@ $list, $field, other $(, $key)?);)+
    }};
    (@ $list:expr, $field:ident, $other:ident, $key:literal) => {
        if *$field != $other.$field {
            $list.push($key);
        }
    };
    (@ $list:expr, $field:ident, $other:ident) => {
        let _ = ($field, &$other.$field);
    };
}

impl Config {
    /// The keys in which `to` differs.
    #[must_use]
    pub fn changes(&self, to: &Self) -> Changes {
        let mut changes = Changes::default();
        let (live, restart) = (&mut changes.live, &mut changes.restart);
        compare!(restart, Config, self, to, {
            identity => "identity",
            development => "development",
            state_directory => "state_directory",
            control_socket => "control_socket",
            custody, tpm, onboard, uplink, sessions, spool, audit, tasks, log,
        });
        compare!(restart, CustodyConfig, &self.custody, &to.custody, {
            custodian, escrow, rotate_every => "custody.rotate_hours",
        });
        custodian(restart, &self.custody.custodian, &to.custody.custodian);
        escrow(restart, self.custody.escrow.as_ref(), to.custody.escrow.as_ref());
        compare!(restart, TpmConfig, &self.tpm, &to.tpm, {
            tcti => "tpm.tcti",
            pcrs => "tpm.pcrs",
            deadline => "tpm.deadline_seconds",
            policy_key => "tpm.policy_key",
            policies => "tpm.policies",
        });
        compare!(restart, OnboardConfig, &self.onboard, &to.onboard, {
            host => "onboard.host", port => "onboard.port", prefix => "onboard.prefix",
        });
        uplink(restart, &self.uplink, &to.uplink);
        compare!(live, SessionsConfig, &self.sessions, &to.sessions, {
            lifetimes, warm => "sessions.warm", decryption_budget => "sessions.decryption_budget",
        });
        compare!(live, Lifetimes, &self.sessions.lifetimes, &to.sessions.lifetimes, {
            general => "sessions.general_ttl_seconds",
            sensitive => "sessions.sensitive_ttl_seconds",
            long => "sessions.long_ttl_seconds",
        });
        compare!(live, SpoolLimits, &self.spool, &to.spool, {
            max_bytes => "spool.max_bytes", max_age => "spool.max_age_seconds",
        });
        compare!(restart, AuditLimits, &self.audit, &to.audit, {
            file_bytes => "audit.file_bytes", files => "audit.files",
        });
        if self.tasks != to.tasks {
            live.push("tasks");
        }
        let LogConfig { level, format } = &self.log;
        if *level != to.log.level {
            live.push("log.level");
        }
        if *format != to.log.format {
            restart.push("log.format");
        }
        changes
    }
}

fn custodian(list: &mut Vec<&'static str>, from: &CustodianConfig, to: &CustodianConfig) {
    match (from, to) {
        (CustodianConfig::Pkcs11(from), CustodianConfig::Pkcs11(to)) => {
            compare!(list, Pkcs11Config, from, to, {
                module => "pkcs11.module", token => "pkcs11.token", pin_file => "pkcs11.pin_file",
            });
        }
        (CustodianConfig::Kms(from), CustodianConfig::Kms(to)) => kms(list, from, to),
        (from, to) if from != to => list.push("custody.custodian"),
        _ => {}
    }
}

fn escrow(list: &mut Vec<&'static str>, from: Option<&EscrowConfig>, to: Option<&EscrowConfig>) {
    match (from, to) {
        // The custodian may have named the same key already.
        (Some(EscrowConfig::Kms(from)), Some(EscrowConfig::Kms(to))) => {
            let mut own = Vec::new();
            kms(&mut own, from, to);
            own.retain(|key| !list.contains(key));
            list.append(&mut own);
        }
        (from, to) if from != to => list.push("escrow.recipient"),
        _ => {}
    }
}

fn kms(list: &mut Vec<&'static str>, from: &KmsConfig, to: &KmsConfig) {
    compare!(list, KmsConfig, from, to, {
        key => "kms.key", region => "kms.region", endpoint => "kms.endpoint",
    });
}

fn uplink(list: &mut Vec<&'static str>, from: &UplinkConfig, to: &UplinkConfig) {
    compare!(list, UplinkConfig, from, to, {
        host => "uplink.host",
        port => "uplink.port",
        ca => "uplink.ca",
        robots_ca => "uplink.robots_ca",
        server_key, operator_key,
        certificate => "uplink.certificate",
        key => "uplink.key",
        renew_command => "uplink.renew_command",
        keep_alive => "uplink.keep_alive_seconds",
    });
    if from.server_key.path != to.server_key.path {
        list.push("uplink.server_key");
    }
    let path = |config: &UplinkConfig| config.operator_key.as_ref().map(|key| key.path.clone());
    if path(from) != path(to) {
        list.push("uplink.operator_key");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::build;

    fn read(text: &str) -> Config {
        let text = format!("identity = 'a.b'\nuplink.host = 'h'\n{text}");
        moai_settings::read(Path::new("agent.toml"), &text, |root| build(Path::new("x"), root))
            .unwrap()
    }

    #[test]
    fn what_a_running_agent_can_follow_is_told_from_what_waits() {
        let before = read("");
        for (text, live, restart) in [
            ("", &[][..], &[][..]),
            ("# another line\nuplink.server_key = '/etc/moai-agent/server-key.pem'", &[], &[]),
            ("log.level = 'debug'", &["log.level"], &[]),
            ("log.format = 'json'", &[], &["log.format"]),
            ("uplink.port = 1", &[], &["uplink.port"]),
            ("uplink.server_key = '/k'", &[], &["uplink.server_key"]),
            ("uplink.operator_key = '/k'", &[], &["uplink.operator_key"]),
            ("spool.max_bytes = 100000\naudit.files = 3", &["spool.max_bytes"], &["audit.files"]),
            (
                "sessions.warm = 0\nsessions.long_ttl_seconds = 9",
                &["sessions.warm", "sessions.long_ttl_seconds"],
                &[],
            ),
            ("[[tasks]]\nname = 'a'\nmodel = 'm'", &["tasks"], &[]),
            (
                "custody.custodian = 'kms'\n[kms]\nkey = 'k'\nregion = 'r'",
                &[],
                &["custody.custodian"],
            ),
        ] {
            let after = read(text);
            let changes = Changes { live: live.to_vec(), restart: restart.to_vec() };
            assert_eq!(before.changes(&after), changes, "{text}");
            assert_eq!(after.changes(&before), changes, "{text}");
        }
    }

    #[test]
    fn a_key_that_two_sections_use_is_named_once() {
        let text = |region: &str| {
            format!(
                "custody.custodian = 'kms'\nescrow.recipient = 'kms'\n[kms]\nkey = 'k'\n\
                 region = '{region}'"
            )
        };
        let changes = read(&text("here")).changes(&read(&text("there")));
        assert_eq!(changes.restart, ["kms.region"]);
    }
}
