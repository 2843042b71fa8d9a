use std::path::Path;

use proptest::prelude::*;

use super::*;

const ROOT: [u8; 32] = [7; 32];
/// Made with `openssl genpkey -algorithm X25519` and `openssl pkey -pubout`.
const OPENSSL_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VuBCIEIAjCbWFjjTwtfhytBlnAS0DQrYTADuAwej3n79hWuYJi\n\
    -----END PRIVATE KEY-----";
const OPENSSL_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VuAyEAYik+1IXEKY5BqBRZTlFOsV+N/jlW/Mlh3tLkWERzmBY=\n\
    -----END PUBLIC KEY-----";

fn robot(name: &str) -> Identity {
    name.parse().unwrap()
}

fn sealed_for(public_pem: &str, epoch: Epoch) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("escrow.pub");
    std::fs::write(&path, public_pem).unwrap();
    let root = RootSecret::from_bytes(ROOT);
    seal(&EscrowConfig::PublicKey(path), &robot("acme.robot-1"), epoch, &root).unwrap()
}

fn open(file: &[u8], private_pem: &str) -> Result<(Epoch, [u8; 32]), EscrowError> {
    let (epoch, root) = open_with_key(file, &robot("acme.robot-1"), private_pem)?;
    Ok((epoch, *root.expose()))
}

#[test]
fn the_holder_of_the_private_key_gets_root_and_epoch_back() {
    let keys = generate_keys().unwrap();
    let file = sealed_for(&keys.public_pem, Epoch(3));
    assert_eq!(facts(&file).unwrap(), EscrowFacts { kind: EscrowKind::PublicKey, epoch: Epoch(3) });
    assert_eq!(open(&file, &keys.private_pem).unwrap(), (Epoch(3), ROOT));
    assert_ne!(sealed_for(&keys.public_pem, Epoch(3)), file, "each sealing is fresh");
}

#[test]
fn keys_that_openssl_made_serve_as_well() {
    let file = sealed_for(OPENSSL_PUBLIC, Epoch::FIRST);
    assert_eq!(open(&file, OPENSSL_PRIVATE).unwrap(), (Epoch::FIRST, ROOT));
}

#[test]
fn another_key_another_robot_and_another_kind_are_told_apart() {
    let (keys, others) = (generate_keys().unwrap(), generate_keys().unwrap());
    let file = sealed_for(&keys.public_pem, Epoch::FIRST);
    let message = open(&file, &others.private_pem).unwrap_err().to_string();
    assert!(message.contains(&keys.fingerprint) && message.contains(&others.fingerprint));
    let error = open_with_key(&file, &robot("acme.robot-2"), &keys.private_pem).err();
    assert!(matches!(error, Some(EscrowError::Tampered)), "{error:?}");
    let file = encode(EscrowKind::Kms, Epoch::FIRST, &[1; 200]);
    let error = open(&file, &keys.private_pem);
    assert!(matches!(error, Err(EscrowError::OtherKind(EscrowKind::Kms))), "{error:?}");
}

#[test]
fn a_changed_byte_is_refused_wherever_it_is_also_under_a_digest_that_fits() {
    let keys = generate_keys().unwrap();
    let file = sealed_for(&keys.public_pem, Epoch(2));
    for position in 0..file.len() {
        let mut altered = file.clone();
        altered[position] ^= 1;
        assert!(open(&altered, &keys.private_pem).is_err(), "byte {position}");
    }
    let content = file.len() - DIGEST_LEN;
    for position in MAGIC.len() + 1..content {
        let mut altered = file[..content].to_vec();
        altered[position] ^= 1;
        let digest = Sha256::digest(&altered);
        altered.extend(digest);
        assert!(open(&altered, &keys.private_pem).is_err(), "byte {position}");
    }
}

#[test]
fn what_is_no_x25519_key_is_named_with_its_file() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("escrow.pub");
    let seal = |path: &Path| {
        let config = EscrowConfig::PublicKey(path.to_owned());
        seal(&config, &robot("a.b"), Epoch::FIRST, &RootSecret::from_bytes(ROOT)).unwrap_err()
    };
    let keys = generate_keys().unwrap();
    let weak = p256::pkcs8::Document::try_from(
        [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x03, 0x21, 0x00][..], &[0; 32]]
            .concat(),
    );
    let weak = weak.unwrap().to_pem("PUBLIC KEY", p256::pkcs8::LineEnding::LF).unwrap();
    let ed25519 = OPENSSL_PUBLIC.replace("MCowBQYDK2VuAyEA", "MCowBQYDK2VwAyEA");
    for (content, said) in [
        ("no key", "no PEM block"),
        (keys.private_pem.as_str(), "labelled \"PUBLIC KEY\""),
        (ed25519.as_str(), "no X25519 key"),
        (weak.as_str(), "protect nothing"),
        (&"-".repeat(5000), "larger than any key"),
    ] {
        std::fs::write(&path, content).unwrap();
        let message = seal(&path).to_string();
        assert!(message.contains(said), "{message}");
    }
    std::fs::remove_file(&path).unwrap();
    let message = seal(&path).to_string();
    assert!(message.contains("escrow.pub") && message.contains("No such file"), "{message}");
    let message = read_key_file(&path).unwrap_err().to_string();
    assert!(message.contains("escrow.pub") && message.contains("No such file"), "{message}");
}

proptest! {
    #[test]
    fn parsing_never_panics(mut file in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = facts(&file);
        let mut headed = MAGIC.to_vec();
        headed.push(VERSION);
        headed.append(&mut file);
        let digest = Sha256::digest(&headed);
        headed.extend(digest);
        if let Ok(parts) = Parts::parse(&headed) {
            prop_assert_eq!(parts.body.len() + HEADER_LEN + DIGEST_LEN, headed.len());
        }
    }
}
