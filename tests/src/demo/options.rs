//! The command line of the demo.

use std::fmt;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};

use crate::reference::Scheme;

/// Shows a robot that asks a cloud model without showing it a reading.
///
/// Starts a software TPM, two MQTT brokers, a compute server and the agent as processes on this
/// machine, plays recorded grasps to the agent, and stops everything again. Prints a table and
/// writes target/demo/report.html.
#[derive(Debug, Clone, Parser)]
#[command(name = "moai-demo", bin_name = "cargo xtask demo --", version)]
pub struct Options {
    /// How many recorded grasps to play, from every class in proportion
    #[arg(
        long,
        value_name = "N",
        default_value_t = 40,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub trials: u16,

    /// Play all 251 recorded grasps
    #[arg(long, conflicts_with = "trials")]
    pub all: bool,

    /// How the robot encrypts: TFHE for exact decisions, CKKS for servers that compute with TenSEAL
    #[arg(long, value_enum, default_value = "tfhe")]
    pub scheme: Scheme,

    /// The model to ask
    #[arg(long, value_enum, default_value_t = Question::Grasp)]
    pub model: Question,

    /// Keep configurations, state and logs, and say where they are
    #[arg(long)]
    pub keep: bool,
}

/// What the robot asks about a grasp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Question {
    /// Normal, collision or obstruction?
    Grasp,
    /// Normal or failure?
    Failure,
    /// The first question, answered by a small neural network; with CKKS only
    Network,
}

impl Question {
    /// The id of the model that answers under a scheme.
    ///
    /// # Errors
    /// The scheme has none.
    pub fn model(self, scheme: Scheme) -> Result<&'static str> {
        Ok(match (scheme, self) {
            (Scheme::Tfhe, Self::Grasp) => "grasp",
            (Scheme::Tfhe, Self::Failure) => "failure",
            (Scheme::Tfhe, Self::Network) => {
                bail!("the network is a model for CKKS: add --scheme ckks")
            }
            (Scheme::Ckks, Self::Grasp) => "grasp-linear",
            (Scheme::Ckks, Self::Failure) => "failure-linear",
            (Scheme::Ckks, Self::Network) => "grasp-mlp",
        })
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Grasp => "grasp",
            Self::Failure => "failure",
            Self::Network => "network",
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
        let options = Options::try_parse_from(["demo"]).unwrap();
        assert_eq!((options.trials, options.all, options.model), (40, false, Question::Grasp));
        assert_eq!(options.scheme, Scheme::Tfhe);
        let ckks = Options::try_parse_from(["demo", "--scheme", "ckks", "--model", "network"]);
        let Options { scheme, model, .. } = ckks.unwrap();
        assert_eq!(model.model(scheme).unwrap(), "grasp-mlp");
        assert!(Question::Network.model(Scheme::Tfhe).is_err());
        assert!(Options::try_parse_from(["demo", "--trials", "0"]).is_err());
        assert!(Options::try_parse_from(["demo", "--all", "--trials", "3"]).is_err());
    }
}
