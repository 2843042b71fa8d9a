//! Keys: made from a seed on the robot, unpacked on the server.

use anyhow::Result;
use moai_fhe::{Context, EvaluationKeys};
use moai_transport::chunk::manifest;
use tfhe::safe_serialization::safe_serialize;
use tfhe::{ClientKey, CompressedServerKey, ConfigBuilder};

use super::Run;
use super::measure::{Series, compare};
use super::report::Figure;
use super::subject;

const SECTION: &str = "keys";
const MAX_LEN: u64 = 1 << 30;

/// Measures the section.
///
/// # Errors
/// Keys cannot be made or are refused.
pub fn run(run: &mut Run) -> Result<()> {
    run.step("generating keys");
    let (one, two) = (subject::pool(1)?, subject::pool(2)?);
    let engine = subject::engine()?;
    let client =
        ClientKey::generate(ConfigBuilder::default().use_dedicated_oprf_key(false).build());
    let key = engine.evaluation_keys()?;
    let context = Context::tfhe();
    let generate = || Ok(engine.evaluation_keys()?.len());
    let generate_tfhe = || {
        let mut bytes = Vec::new();
        safe_serialize(&CompressedServerKey::new(&client), &mut bytes, MAX_LEN)?;
        Ok(bytes.len())
    };
    let unpack = || EvaluationKeys::from_bytes(&context, &key).map(|_| 0).map_err(Into::into);
    let hour = std::time::Duration::from_hours(1);
    let session_key = subject::session_key().public();
    let manifest = || manifest(subject::context_id(), hour, session_key, &key, 1);
    let hash = || Ok(manifest()?.chunk_digests.len());
    let [setup, on_one, on_two, tfhe_on_one, tfhe_on_two, unpack_on_one, unpack_on_two, hashing] =
        compare(
            run.repeats(5, 1),
            [
                &mut || subject::engine().map(|_| 0),
                &mut || one.install(generate),
                &mut || two.install(generate),
                &mut || one.install(generate_tfhe),
                &mut || two.install(generate_tfhe),
                &mut || one.install(unpack),
                &mut || two.install(unpack),
                &mut || hash(),
            ],
        )?;
    let megabytes =
        |series: &Series| f64::from(u32::try_from(series.output).unwrap_or(u32::MAX)) / 1e6;
    let (size, tfhe_size) = (megabytes(&on_one), megabytes(&tfhe_on_one));
    run.add(
        Figure::new(SECTION, "evaluation keys, size", size, "MB")
            .against("CompressedServerKey", tfhe_size, tfhe_size / size, "times smaller")
            .goal("≤ 25 MB", size <= 25.0),
    );
    run.add(Figure::new(SECTION, "secret keys from a seed", setup.wall() * 1e3, "ms"));
    for (name, series, tfhe) in [
        ("evaluation keys, generated on 1 thread", &on_one, &tfhe_on_one),
        ("evaluation keys, generated on 2 threads", &on_two, &tfhe_on_two),
    ] {
        run.add(Figure::new(SECTION, name, series.wall() * 1e3, "ms").against(
            "CompressedServerKey",
            tfhe.wall() * 1e3,
            tfhe.wall_over(series),
            "times as fast",
        ));
    }
    run.add(Figure::new(SECTION, "manifest (digests)", hashing.wall() * 1e3, "ms"));
    run.add(Figure::new(
        SECTION,
        "unpacked by the server on 1 thread",
        unpack_on_one.wall() * 1e3,
        "ms",
    ));
    run.add(
        Figure::new(
            SECTION,
            "unpacked by the server on 2 threads",
            unpack_on_two.wall() * 1e3,
            "ms",
        )
        .against(
            "1 thread",
            unpack_on_one.wall() * 1e3,
            unpack_on_one.wall_over(&unpack_on_two),
            "times as fast",
        ),
    );
    run.note(
        SECTION,
        "CompressedServerKey: tfhe's default parameters without a key for random bits, \
         serialised; times by the clock",
    );
    Ok(())
}
