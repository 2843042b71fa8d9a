//! Packed encryption against tfhe's own ways to encrypt, on one thread's work.
//!
//! Invariant: all subjects use tfhe's generator and parameters of 128-bit security and failure
//! probability ≤ 2^-128, and put out the bytes that would be sent.

use anyhow::Result;
use moai_agent::secrets::OsEntropy;
use tfhe::named::Named;
use tfhe::prelude::FheTryEncrypt as _;
use tfhe::safe_serialization::safe_serialize;
use tfhe::{
    ClientKey, CompactCiphertextList, CompactPublicKey, CompressedFheInt16, CompressedFheUint4,
    ConfigBuilder, Versionize,
};

use super::Run;
use super::measure::{Series, compare};
use super::pipeline::windows;
use super::report::Figure;
use super::subject;

const SECTION: &str = "encrypt";
const MAX_LEN: u64 = 1 << 30;
/// Values encrypted together: a window's features, its readings, and more.
const COUNTS: [usize; 4] = [24, 90, 360, 1000];

/// Measures the section.
///
/// # Errors
/// An encryption fails.
pub fn run(run: &mut Run) -> Result<()> {
    // Without a key for random bits on the server, as small as tfhe's own keys get.
    let config = ConfigBuilder::default().use_dedicated_oprf_key(false).build();
    let client = ClientKey::generate(config);
    let public = CompactPublicKey::try_new(&client)?;
    let mut by_count = Vec::new();
    for count in COUNTS {
        run.step(&format!("encrypting {count} values"));
        let [ours, single, packed] = values(run, count, &client, &public)?;
        add_values(run, count, [&ours, &single, &packed]);
        by_count.push((count, ours));
    }
    add_growth(run, &by_count);
    run.step("encrypting a window");
    window(run, &client, &public)?;
    run.note(
        SECTION,
        "value: ours is a level of 4 bits, CompressedFheInt16's and the compact list's a \
         number of 16 bits; values/s are per CPU second",
    );
    run.note(
        SECTION,
        "ours and CompressedFheInt16 encrypt with the secret key, the compact list with a \
         public key, which costs it time; ours serves a lookup per value and no other \
         arithmetic",
    );
    Ok(())
}

fn values(
    run: &Run,
    count: usize,
    client: &ClientKey,
    public: &CompactPublicKey,
) -> Result<[Series; 3]> {
    let (engine, card) = (subject::engine()?, subject::card(count)?);
    let levels = subject::levels(&card)?;
    let numbers: Vec<i16> = (-3617..).step_by(5).take(count).collect();
    compare(
        run.repeats(11, 2),
        [
            &mut || Ok(engine.encrypt(&card, &levels, &mut OsEntropy)?.len()),
            &mut || single(&numbers, client),
            &mut || packed(&numbers, public),
        ],
    )
}

/// Each number a ciphertext of its own, with a seed in place of the mask.
fn single(numbers: &[i16], client: &ClientKey) -> Result<usize> {
    let one = |number: &i16| serialized_len(&CompressedFheInt16::try_encrypt(*number, client)?);
    numbers.iter().map(one).sum()
}

fn packed(numbers: &[i16], public: &CompactPublicKey) -> Result<usize> {
    let mut builder = CompactCiphertextList::builder(public);
    builder.extend(numbers.iter().copied());
    serialized_len(&builder.build_packed())
}

/// The same plaintext as ours: levels of 4 bits.
fn single_levels(levels: &[u8], client: &ClientKey) -> Result<usize> {
    let one = |level: &u8| serialized_len(&CompressedFheUint4::try_encrypt(*level, client)?);
    levels.iter().map(one).sum()
}

fn serialized_len<T: serde::Serialize + Versionize + Named>(value: &T) -> Result<usize> {
    let mut bytes = Vec::new();
    safe_serialize(value, &mut bytes, MAX_LEN)?;
    Ok(bytes.len())
}

fn add_values(run: &mut Run, count: usize, [ours, single, packed]: [&Series; 3]) {
    let values = float(count);
    let bytes = |series: &Series| float(series.output) / values;
    let rate = |series: &Series| values / series.cpu();
    for (what, baseline, has_goal) in
        [("CompressedFheInt16", single, true), ("CompactCiphertextList packed", packed, false)]
    {
        let fewer = bytes(baseline) / bytes(ours);
        let faster = baseline.cpu_over(ours);
        let sizes = Figure::new(SECTION, format!("bytes/value, {count} values"), bytes(ours), "B")
            .against(what, bytes(baseline), fewer, "times fewer");
        let rates = Figure::new(SECTION, format!("values/s, {count} values"), rate(ours), "/s")
            .against(what, rate(baseline), faster, "times as many");
        if has_goal {
            run.add(sizes.goal("≥ 50 times fewer", fewer >= 50.0));
            run.add(rates.goal("≥ 100 times as many", faster >= 100.0));
        } else {
            run.add(sizes);
            run.add(rates);
        }
    }
}

/// One ciphertext has a mask, whatever it holds: that cost is shared by its values.
fn add_growth(run: &mut Run, by_count: &[(usize, Series)]) {
    let Some((fewest, first)) = by_count.first() else { return };
    for (count, series) in by_count {
        let name = format!("one encryption of {count} values");
        let figure = Figure::new(SECTION, name, series.cpu() * 1e6, "µs");
        run.add(if count == fewest {
            figure
        } else {
            let what = format!("{fewest} values");
            let ratio = series.cpu_over(first);
            figure.against(what, first.cpu() * 1e6, ratio, "times the CPU time")
        });
    }
}

/// A window as it is sent: our 24 levels, or what else carries its 90 readings.
fn window(run: &mut Run, client: &ClientKey, public: &CompactPublicKey) -> Result<()> {
    let (engine, model, trials) = (subject::engine()?, subject::grasp()?, subject::trials()?);
    let card = model.card();
    let window = windows(card, &trials)?.swap_remove(0);
    let readings = trials.first().map_or(&[][..], |trial| trial.samples.as_flattened());
    let levels = card.inputs(&window)?;
    let [ours, single, packed, small] = compare(
        run.repeats(11, 2),
        [
            &mut || Ok(engine.encrypt(card, &card.inputs(&window)?, &mut OsEntropy)?.len()),
            &mut || self::single(readings, client),
            &mut || self::packed(readings, public),
            &mut || single_levels(levels.levels(), client),
        ],
    )?;
    for (what, baseline) in [
        ("90 CompressedFheInt16", &single),
        ("90 int16, packed compact list", &packed),
        ("24 CompressedFheUint4", &small),
    ] {
        let (own, other) = (float(ours.output), float(baseline.output));
        run.add(Figure::new(SECTION, "bytes of one window (24 levels)", own, "B").against(
            what,
            other,
            other / own,
            "times fewer",
        ));
        run.add(
            Figure::new(SECTION, "one window: features, encryption", ours.cpu() * 1e6, "µs")
                .against(what, baseline.cpu() * 1e6, baseline.cpu_over(&ours), "times as fast"),
        );
    }
    run.note(
        SECTION,
        "one window is 90 readings of 16 bits; ours computes 24 features of it and sends \
         their levels, not the readings",
    );
    Ok(())
}

/// A count as a number to compute with.
#[expect(clippy::cast_precision_loss, reason = "counts and lengths here are far below 2^52")]
fn float(count: usize) -> f64 {
    count as f64
}
