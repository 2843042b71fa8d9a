//! Signed policies: a platform that changed opens without resealing, if the fleet's key says so.

use moai_tpm::{
    Advice, Epoch, Loaded, MAX_SIGNED_POLICY_LEN, Measurements, PcrSelection, PolicyError,
    PolicyKey, Protection, RecoveryCode, SealedRoot, SignedPolicy, Tpm, TpmError, sign_policy,
};
use p256::SecretKey;
use p256::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use proptest::prelude::*;
use tss_esapi::handles::PcrHandle;

use crate::software_tpm::SoftwareTpm;
use crate::{SECRET, secret, start};

/// A policy key as its owner has it.
struct Signer {
    private: String,
    public: PolicyKey,
}

impl Signer {
    fn new(seed: u8) -> Self {
        let key = SecretKey::from_slice(&[seed; 32]).expect("succeeds");
        let private = key.to_pkcs8_pem(LineEnding::LF).expect("succeeds").to_string();
        let public = key.public_key().to_public_key_pem(LineEnding::LF).expect("succeeds");
        Self { private, public: PolicyKey::from_pem(&public).expect("succeeds") }
    }

    /// Signs, and sends the file through its text form.
    fn sign(&self, measurements: &Measurements) -> SignedPolicy {
        let signed = sign_policy(&self.private, measurements).expect("succeeds");
        let read = SignedPolicy::from_json(signed.to_json()).expect("succeeds");
        assert_eq!(read, signed);
        read
    }

    fn protection(&self, pcrs: &str) -> Protection {
        Protection { pcrs: pcrs.parse().expect("succeeds"), policy_key: Some(self.public.clone()) }
    }
}

fn seal(tpm: &Tpm, signer: &Signer) -> SealedRoot {
    let recovery = RecoveryCode::from_bytes([9; 16]);
    let protection = signer.protection("sha256:4,7");
    tpm.seal(Epoch::FIRST, &secret(), Some(&recovery), &protection).expect("succeeds")
}

fn measure(tpm: &Tpm, pcrs: &str) -> Measurements {
    tpm.measurements(pcrs.parse().expect("succeeds")).expect("succeeds")
}

/// A TPM whose PCR 4 was extended after sealing, and what it held before.
fn updated(signer: &Signer) -> (SoftwareTpm, SealedRoot, Measurements) {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = seal(&tpm, signer);
    let before = measure(&tpm, "sha256:4,7");
    drop(tpm);
    swtpm.extend(PcrHandle::Pcr4);
    (swtpm, sealed, before)
}

fn refusal(tpm: &Tpm, sealed: &SealedRoot, policies: &[SignedPolicy]) -> TpmError {
    let error = tpm.unseal(sealed, policies).err().expect("refused");
    assert_eq!(error.advice(), Advice::Fix, "{error}");
    assert_eq!(tpm.loaded().expect("succeeds"), Loaded { objects: 0, sessions: 0 });
    error
}

#[test]
fn an_update_with_a_signed_policy_opens_without_resealing() {
    let signer = Signer::new(1);
    let (swtpm, sealed, before) = updated(&signer);
    let tpm = start(swtpm.tcti());
    let read = SealedRoot::from_bytes(&sealed.to_bytes()).unwrap();
    assert_eq!(read, sealed);
    assert_eq!(read.policy_key(), Some(&signer.public));

    let after = measure(&tpm, "sha256:4,7");
    assert_ne!(after, before);
    // Among policies of others, of earlier firmware and for other PCRs.
    let policies = [
        Signer::new(2).sign(&after),
        signer.sign(&before),
        signer.sign(&measure(&tpm, "sha256:4")),
        signer.sign(&after),
    ];
    let unsealed = tpm.unseal(&read, &policies).unwrap();
    assert_eq!(unsealed.root.expose(), &SECRET);
    assert_eq!(unsealed.recovery.unwrap().expose(), &[9; 16]);
    assert_eq!(tpm.loaded().unwrap(), Loaded { objects: 0, sessions: 0 });
}

#[test]
fn without_recovery_code_and_at_the_first_boot_too() {
    let signer = Signer::new(1);
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    for pcrs in ["sha256:7", "sha384:0,7", "sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,23"] {
        let sealed = tpm.seal(Epoch::FIRST, &secret(), None, &signer.protection(pcrs)).unwrap();
        assert_eq!(tpm.unseal(&sealed, &[]).unwrap().root.expose(), &SECRET);
    }
    let protection = signer.protection("sha256:0,4");
    let sealed = tpm.seal(Epoch::FIRST, &secret(), None, &protection).unwrap();
    drop(tpm);
    swtpm.extend(PcrHandle::Pcr4);
    let tpm = start(swtpm.tcti());
    let policy = signer.sign(&measure(&tpm, "sha256:0,4"));
    assert_eq!(tpm.unseal(&sealed, &[policy]).unwrap().root.expose(), &SECRET);
}

#[test]
fn the_state_of_sealing_needs_no_policy_and_any_other_does() {
    let signer = Signer::new(1);
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = seal(&tpm, &signer);
    assert_eq!(tpm.unseal(&sealed, &[]).unwrap().root.expose(), &SECRET);
    drop(tpm);
    swtpm.extend(PcrHandle::Pcr4);
    let tpm = start(swtpm.tcti());
    let (key, selection) = (signer.public.fingerprint(), sealed.pcrs());
    let error = refusal(&tpm, &sealed, &[]);
    assert_eq!(error, TpmError::NoPolicy { key, selection, changed: vec![4] });
}

#[test]
fn a_policy_of_another_signer_is_refused() {
    let signer = Signer::new(1);
    let (swtpm, sealed, _) = updated(&signer);
    let tpm = start(swtpm.tcti());
    let stranger = Signer::new(2).sign(&measure(&tpm, "sha256:4,7"));
    let key = signer.public.fingerprint();
    let error = refusal(&tpm, &sealed, std::slice::from_ref(&stranger));
    assert_eq!(error, TpmError::PolicySigner { key: key.clone() });
    assert!(error.to_string().contains(&key), "{error}");

    let error = stranger.signed_by(&signer.public).unwrap_err();
    let claimed = Signer::new(2).public.fingerprint();
    assert_eq!(error, PolicyError::Signer { key, claimed });
}

#[test]
fn a_policy_for_other_values_is_stale_and_the_closest_one_names_the_pcrs() {
    let signer = Signer::new(1);
    let (swtpm, sealed, before) = updated(&signer);
    let far: Measurements =
        format!("sha256:4={},7={}", "ab".repeat(32), "cd".repeat(32)).parse().unwrap();
    let tpm = start(swtpm.tcti());
    let error = refusal(&tpm, &sealed, &[signer.sign(&far), signer.sign(&before)]);
    let selection: PcrSelection = "sha256:4,7".parse().unwrap();
    assert_eq!(error, TpmError::PolicyStale { selection, changed: vec![4] });
    assert!(error.to_string().contains("PCR 4 (boot loader) changed"), "{error}");
}

#[test]
fn a_policy_for_other_pcrs_is_refused() {
    let signer = Signer::new(1);
    let (swtpm, sealed, _) = updated(&signer);
    let tpm = start(swtpm.tcti());
    let other = signer.sign(&measure(&tpm, "sha256:7"));
    let error = refusal(&tpm, &sealed, &[other]);
    let selection = |text: &str| text.parse().unwrap();
    let expected = TpmError::PolicySelection {
        sealed: selection("sha256:4,7"),
        signed: selection("sha256:7"),
    };
    assert_eq!(error, expected);
}

#[test]
fn every_altered_signature_and_value_is_refused() {
    let signer = Signer::new(1);
    let good = signer.sign(&format!("sha256:7={}", "00".repeat(32)).parse().unwrap());
    good.signed_by(&signer.public).unwrap();
    let json = good.to_json();
    let digits: Vec<usize> = ["=", "\"signature\": \""]
        .into_iter()
        .map(|before| json.find(before).unwrap() + before.len())
        .flat_map(|start| start..start + 64)
        .collect();
    for position in digits {
        let mut altered = json.clone().into_bytes();
        altered[position] = if altered[position] == b'1' { b'2' } else { b'1' };
        let refused = SignedPolicy::from_json(&altered)
            .map_or(true, |policy| policy.signed_by(&signer.public).is_err());
        assert!(refused, "digit at {position}");
    }
}

#[test]
fn keys_are_read_in_the_forms_openssl_writes() {
    let measurements = format!("sha256:7={}", "00".repeat(32)).parse().unwrap();
    let signer = Signer::new(1);
    let sec1 = SecretKey::from_slice(&[1; 32]).unwrap().to_sec1_pem(LineEnding::LF).unwrap();
    assert!(sec1.contains("EC PRIVATE KEY"));
    for private in [&signer.private, &*sec1] {
        let policy = sign_policy(private, &measurements).unwrap();
        assert_eq!(policy.claimed_signer(), signer.public.fingerprint());
        policy.signed_by(&signer.public).unwrap();
    }
    for text in ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        assert_eq!(PolicyKey::from_pem(text), Err(PolicyError::PublicKey));
        assert_eq!(sign_policy(text, &measurements), Err(PolicyError::PrivateKey));
    }
    assert_eq!(PolicyKey::from_pem(&signer.private), Err(PolicyError::PublicKey));
    let too_long = signer.private.repeat(100);
    assert_eq!(sign_policy(&too_long, &measurements), Err(PolicyError::PrivateKey));
}

#[test]
fn files_that_are_no_signed_policy_are_told_apart() {
    let good =
        Signer::new(1).sign(&format!("sha256:7={}", "00".repeat(32)).parse().unwrap()).to_json();
    let read = |text: &str| SignedPolicy::from_json(text).unwrap_err();
    assert!(matches!(read(""), PolicyError::Json(_)));
    assert!(matches!(read("{}"), PolicyError::Json(_)));
    let more = good.replacen('{', "{ \"comment\": \"\",", 1);
    assert!(matches!(read(&more), PolicyError::Json(_)));
    assert_eq!(read(&good.replace("policy/1", "policy/2")), PolicyError::Format);
    assert!(matches!(read(&good.replace("sha256:7", "sha1:7")), PolicyError::Measurements(_)));
    let nul = good.replace(&"0".repeat(64), &"0".repeat(62));
    assert!(matches!(read(&nul), PolicyError::Measurements(_)));
    assert_eq!(read(&" ".repeat(MAX_SIGNED_POLICY_LEN + 1)), PolicyError::TooLarge);
}

proptest! {
    #[test]
    fn reading_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let values = format!("sha256:7={},8={}", "00".repeat(32), "ff".repeat(32));
        let mut bytes = Signer::new(1).sign(&values.parse().unwrap()).to_json().into_bytes();
        for (index, value) in edits {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        // Whatever is accepted is written so that it reads the same.
        for text in [bytes.as_slice(), &bytes[..cut.index(bytes.len())], &noise] {
            if let Ok(policy) = SignedPolicy::from_json(text) {
                prop_assert_eq!(SignedPolicy::from_json(policy.to_json()), Ok(policy));
            }
        }
    }
}
