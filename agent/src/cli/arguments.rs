//! What can be asked on the command line.
//!
//! Invariant: no secret is an argument, where every process of the machine could read it; secrets
//! are read from standard input or from files.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use moai_transport::ids::{Identity as RobotIdentity, SessionId, TaskId};

use super::exit;
use crate::config;

/// Encrypts sensor samples for a cloud model and decrypts its answers; the model's server never
/// sees a reading, and the secret key never leaves the robot.
#[derive(Parser)]
#[command(name = "moai-agent", version, after_help = exit::HELP)]
pub(super) struct Cli {
    /// Configuration file.
    #[arg(long, short, default_value = config::DEFAULT_PATH, global = true, env = "MOAI_CONFIG")]
    pub(super) config: PathBuf,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make the root secret and the identity key; once for each robot.
    Provision(Provision),
    /// Run the agent in the foreground, as systemd does.
    Run,
    /// Have the running agent read its configuration again, as `systemctl reload` does. A file with
    /// problems changes nothing, and no session is dropped; what waits for a restart is named.
    Reload,
    /// Show what the agent is doing, or why it is not running.
    Status {
        /// For programs: the status as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Seal the root secret to the boot measurements of this moment, before or after a change that
    /// no signed policy covers.
    Reseal {
        /// Also make a new recovery code; the old one opens nothing any more.
        #[arg(long)]
        new_recovery_code: bool,
    },
    /// Get at the root secret when its custodian refuses, and seal it anew to this machine.
    Recover(Recover),
    /// Begin a new epoch.
    #[command(subcommand)]
    Rotate(Rotate),
    /// The tasks of the running agent.
    #[command(subcommand)]
    Task(Task),
    /// The sessions of the running agent.
    #[command(subcommand)]
    Session(Session),
    /// Wipe the keys of every session now, have the server delete them, and begin a new epoch. Jobs
    /// that wait end with the error `revoked`; tasks go on with new sessions.
    Emergency {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// End the tasks too: they stay closed until somebody opens them.
        #[arg(long)]
        stay_closed: bool,
    },
    /// Give a robot of the fleet a command, over the broker of its uplink. Needs no configuration: run
    /// it where the operator's key is kept.
    Remote(Remote),
    /// Boot states that the fleet's policy key allows.
    #[command(subcommand)]
    Policy(Policy),
    /// The robot's identity key and certificate.
    #[command(subcommand)]
    Identity(Identity),
    /// Copies of the root secret for the day its custodian is lost.
    #[command(subcommand)]
    Escrow(Escrow),
    /// The log of what happened to root secret, sessions and uplink.
    #[command(subcommand)]
    Audit(Audit),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Args)]
pub(super) struct Provision {
    /// Also wrap the root secret for the recipient of the section [escrow].
    #[arg(long)]
    pub(super) escrow: bool,
    /// Make no recovery code: if the boot measurements change and no signed policy covers the
    /// change, the root secret is lost.
    #[arg(long)]
    pub(super) no_recovery_code: bool,
    /// For tests: certificate (PEM) of an authority that signs the robot's certificate at once.
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    pub(super) ca: Option<PathBuf>,
    /// For tests: private key (PEM) of that authority.
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub(super) ca_key: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "The recovery code is read from standard input, so that it appears in no \
                        list of processes and no shell history.")]
pub(super) struct Recover {
    /// Open this escrow file instead of asking for the recovery code.
    #[arg(long, value_name = "FILE")]
    pub(super) from_escrow: Option<PathBuf>,
    /// Private key file for an escrow to an offline key.
    #[arg(long, value_name = "FILE", requires = "from_escrow")]
    pub(super) escrow_key: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(super) enum Rotate {
    /// Make a new root secret, wrap the live sessions under it, and destroy the key of the old one:
    /// every older copy of the disk is worthless from then on.
    Root,
}

#[derive(Subcommand)]
pub(super) enum Task {
    /// Show every task with its sessions.
    List,
    /// Go on with new keys as soon as they are ready; no job waits for them.
    Rotate {
        /// The task.
        task: TaskId,
    },
    /// Take nothing more, answer what waits, and end.
    Close {
        /// The task.
        task: TaskId,
    },
    /// Wipe its keys now: jobs that wait end with the error `revoked`. The task goes on with a new
    /// session.
    Revoke {
        /// The task.
        task: TaskId,
        /// End the task too.
        #[arg(long)]
        stay_closed: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum Session {
    /// Wipe its keys now: jobs that wait end with the error `revoked`. Its task goes on with a new
    /// session.
    Revoke {
        /// The session's id, as `moai-agent task list` shows it.
        session: SessionId,
    },
}

#[derive(Args)]
#[command(
    after_help = "A robot obeys the operators whose public keys `uplink.operator_key` of its \
                        configuration names. `openssl genpkey -algorithm ed25519` makes a key. A \
                        robot that is away gets the newest command when it is back, until the \
                        command expires."
)]
pub(super) struct Remote {
    /// The robot: `tenant.robot`.
    #[arg(long)]
    pub(super) robot: RobotIdentity,
    /// The operator's private key: Ed25519 in PEM (PKCS #8).
    #[arg(long, value_name = "FILE")]
    pub(super) key: PathBuf,
    /// How long the command counts, in minutes.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub(super) valid_minutes: u64,
    /// Only write the signed command to this file, to be published as it is, retained, on
    /// `moai/v1/down/ROBOT/command`.
    #[arg(long, short, value_name = "FILE", conflicts_with = "host")]
    pub(super) out: Option<PathBuf>,
    /// The broker's host name, as in its certificate.
    #[arg(long, required_unless_present = "out")]
    pub(super) host: Option<String>,
    /// The broker's port.
    #[arg(long, default_value_t = 8883)]
    pub(super) port: u16,
    /// Authority (PEM) that signed the broker's and the robots' certificates.
    #[arg(long, value_name = "FILE", required_unless_present = "out")]
    pub(super) ca: Option<PathBuf>,
    /// Authority (PEM) of the robots' certificates, if it is another one.
    #[arg(long, value_name = "FILE")]
    pub(super) robots_ca: Option<PathBuf>,
    /// The operator's certificate chain (PEM) for the broker.
    #[arg(long, value_name = "FILE", required_unless_present = "out")]
    pub(super) certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", required_unless_present = "out")]
    pub(super) certificate_key: Option<PathBuf>,
    /// How long to wait for the robot's report, in seconds.
    #[arg(long, default_value_t = 30)]
    pub(super) wait_seconds: u64,
    #[command(subcommand)]
    pub(super) command: RemoteCommand,
}

#[derive(Subcommand)]
pub(super) enum RemoteCommand {
    /// Go on with new keys as soon as they are ready; no job waits for them.
    RotateTask {
        /// The task.
        task: TaskId,
    },
    /// Take nothing more, answer what waits, and end.
    CloseTask {
        /// The task.
        task: TaskId,
    },
    /// Wipe a task's keys now.
    RevokeTask {
        /// The task.
        task: TaskId,
        /// End the task too.
        #[arg(long)]
        stay_closed: bool,
    },
    /// Wipe a session's keys now.
    RevokeSession {
        /// The session's id.
        session: SessionId,
    },
    /// Wipe the keys of every session now, and begin a new epoch.
    Emergency {
        /// End the tasks too.
        #[arg(long)]
        stay_closed: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum Policy {
    /// Show the boot measurements, what the root secret is bound to, and which signed policies are
    /// at hand.
    Show,
    /// Sign a boot state. Needs no TPM and no configuration: run it where the policy key is kept.
    Sign {
        /// Private policy key: ECDSA P-256 in PEM (PKCS #8 or SEC 1).
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The boot state, as `policy show` prints it on a robot that runs the new firmware:
        /// "sha256:7=HEX".
        #[arg(long)]
        measurements: String,
        /// Where to write the signed policy; standard output if absent.
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub(super) enum Identity {
    /// Print a certificate request for the identity key, which is made if there is none.
    Csr,
    /// Take the certificate chain that an authority issued for the request.
    Install {
        /// Certificate chain (PEM), the robot's first; `-` reads standard input.
        chain: PathBuf,
    },
    /// Print the record by which a server that requires attestation knows this robot.
    Enrolment,
}

#[derive(Subcommand)]
pub(super) enum Escrow {
    /// Make a key pair to keep offline: the public half goes to the robots, the private half into a
    /// safe.
    Keygen {
        /// Where to write the private key; the public key goes beside it, with `.pub` behind the
        /// name.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
pub(super) enum Audit {
    /// Check that no entry was removed, changed, moved or added. Asks the running agent, or opens the
    /// root secret where none runs.
    Verify,
    /// Print the entries, oldest first, without checking them.
    Show {
        /// For programs: each entry as the log has it, a line of JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration and the files it names; change nothing.
    Check,
}
