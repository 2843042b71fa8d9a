//! Tests of the transport through its public surface: pure parts against arbitrary input, links
//! against a real broker with mutual TLS.

#[cfg(test)]
mod chunks;
#[cfg(test)]
mod document;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod links;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod names;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod sessions_and_servers;
#[cfg(test)]
mod signatures;
#[cfg(test)]
mod support;
#[cfg(test)]
mod transfer;
