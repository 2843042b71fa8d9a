//! What stays in this process's memory of secrets that came out of the TPM or went into it.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::{Mutex, PoisonError};

use moai_tpm::{Epoch, RecoveryCode, RootSecret};
use zeroize::Zeroize as _;

use crate::software_tpm::SoftwareTpm;
use crate::{plain, start};

/// Bytes of a secret in a row that would be a leak.
const PART_LEN: usize = 8;
const PAGE_LEN: usize = 4096;

/// Two pages of memory that are looked at, on pages of their own.
#[repr(align(4096))]
struct Scanned([u8; 2 * PAGE_LEN]);

static SCANNED: Mutex<Scanned> = Mutex::new(Scanned([0; 2 * PAGE_LEN]));

/// A random secret that is in memory only while it is used: it is kept with all bits inverted.
struct Inverted<const N: usize>([u8; N]);

impl<const N: usize> Inverted<N> {
    fn random() -> Self {
        let mut bytes = [0; N];
        File::open("/dev/urandom").expect("succeeds").read_exact(&mut bytes).expect("succeeds");
        Self(bytes)
    }

    #[inline(never)]
    fn expose<T>(&self, f: impl FnOnce(&[u8; N]) -> T) -> T {
        let mut plain = Box::new(black_box(self.0));
        for byte in plain.iter_mut() {
            *byte = !*byte;
        }
        let result = f(&plain);
        plain.zeroize();
        result
    }

    /// Addresses in writable memory where a part of the secret is.
    fn found(&self) -> Vec<usize> {
        let maps = fs::read_to_string("/proc/self/maps").expect("succeeds");
        let mut memory = File::open("/proc/self/mem").expect("succeeds");
        let mut scanned = SCANNED.lock().unwrap_or_else(PoisonError::into_inner);
        let own = scanned.0.as_ptr().addr();
        let own = own..own + scanned.0.len();
        let mut found = Vec::new();
        for line in maps.lines() {
            let (range, rest) = line.split_once(' ').expect("succeeds");
            if !rest.starts_with("rw") {
                continue;
            }
            let (start, end) = range.split_once('-').expect("succeeds");
            let [start, end] =
                [start, end].map(|text| usize::from_str_radix(text, 16).expect("succeeds"));
            for address in (start..end).step_by(PAGE_LEN).filter(|address| !own.contains(address)) {
                memory
                    .seek(SeekFrom::Start(u64::try_from(address).expect("succeeds")))
                    .expect("succeeds");
                // Another thread may have given the page back meanwhile.
                if memory.read_exact(&mut scanned.0[PAGE_LEN..]).is_ok() {
                    // Together with the end of the page before.
                    let offsets = self.offsets(&scanned.0[PAGE_LEN - PART_LEN + 1..]);
                    found.extend(offsets.map(|offset| address + offset - PART_LEN + 1));
                }
                scanned.0.copy_within(PAGE_LEN.., 0);
            }
            scanned.0.zeroize();
        }
        found
    }

    fn offsets(&self, bytes: &[u8]) -> impl Iterator<Item = usize> {
        let parts: Vec<&[u8]> = self.0.chunks(PART_LEN).collect();
        bytes.windows(PART_LEN).enumerate().filter_map(move |(offset, window)| {
            let is = |part: &&[u8]| window.iter().zip(*part).all(|(byte, other)| *byte == !other);
            parts.iter().any(is).then_some(offset)
        })
    }
}

#[test]
fn nothing_of_a_secret_is_left_but_what_the_caller_holds() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let (root, code) = (Inverted::<32>::random(), Inverted::<16>::random());
    let nowhere = |when: &str| {
        assert!(root.found().is_empty(), "the root secret {when}");
        assert!(code.found().is_empty(), "the recovery code {when}");
    };
    let secret = root.expose(RootSecret::copy_of);
    let recovery = code.expose(RecoveryCode::copy_of);
    assert_eq!(root.found().len(), 32 / PART_LEN, "the scan finds what is there");
    assert_eq!(code.found().len(), 16 / PART_LEN, "the scan finds what is there");
    let mut sealed = tpm.seal(Epoch::FIRST, &secret, Some(&recovery), &plain()).unwrap();
    drop((secret, recovery));
    nowhere("after sealing");

    for _ in 0..5 {
        let unsealed = tpm.unseal(&sealed, &[]).unwrap();
        assert_eq!(root.found().len(), 32 / PART_LEN, "in one place only");
        drop(unsealed);
        nowhere("after unsealing");

        let typed = code.expose(RecoveryCode::copy_of);
        let recovered = tpm.recover(&sealed, &typed).unwrap();
        drop(typed);
        sealed =
            tpm.reseal(&sealed, &recovered.root, recovered.recovery.as_ref(), &plain()).unwrap();
        drop(recovered);
        nowhere("after recovering and resealing");
    }

    drop(tpm);
    nowhere("after closing");
}
