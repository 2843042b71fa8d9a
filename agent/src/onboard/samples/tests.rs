use ciborium::cbor;
use proptest::prelude::*;

use super::*;

fn rows(samples: &Samples, channels: usize) -> Result<Vec<Vec<f64>>, Code> {
    let channels = NonZeroUsize::new(channels).unwrap();
    samples.rows(channels).map(|rows| rows.map(<[f64]>::to_vec).collect()).map_err(|it| it.code)
}

fn parse(format: Format, payload: &[u8], channels: usize) -> Result<Vec<Vec<f64>>, Code> {
    Samples::parse(format, payload).map_err(|it| it.code).and_then(|it| rows(&it, channels))
}

fn cbor(value: &ciborium::Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

#[test]
fn an_input_has_four_forms_in_json_and_in_cbor() {
    let json: [(&[u8], _, _); 4] = [
        (b"69", 1, vec![vec![69.0]]),
        (b" [1, 2.5]", 2, vec![vec![1.0, 2.5]]),
        (br#"{"values": [-1e-3]}"#, 1, vec![vec![-1e-3]]),
        (br#"{"samples": [[1],[2]]}"#, 1, vec![vec![1.0], vec![2.0]]),
    ];
    for (payload, channels, expected) in json {
        assert_eq!(parse(Format::Json, payload, channels), Ok(expected));
    }
    let binary = [
        (cbor!(69), 1, vec![vec![69.0]]),
        (cbor!([1, 2.5]), 2, vec![vec![1.0, 2.5]]),
        (cbor!({"values" => [-7]}), 1, vec![vec![-7.0]]),
        (cbor!({"samples" => [[1.5f32], [2]]}), 1, vec![vec![1.5], vec![2.0]]),
    ];
    for (value, channels, expected) in binary {
        assert_eq!(parse(Format::Cbor, &cbor(&value.unwrap()), channels), Ok(expected));
    }
}

#[test]
fn packed_values_are_plain_numbers_sample_after_sample() {
    let floats: Vec<u8> = [1.5_f32, -2.0, 3.25, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(parse(Format::F32, &floats, 2), Ok(vec![vec![1.5, -2.0], vec![3.25, 4.0]]));
    let integers: Vec<u8> = [-3_i16, 32_767].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(parse(Format::I16, &integers, 2), Ok(vec![vec![-3.0, 32_767.0]]));
    assert_eq!(parse(Format::I16, &integers, 3), Err(Code::WrongLength));
    assert_eq!(parse(Format::I16, &integers[..3], 1), Err(Code::WrongLength));
    assert_eq!(parse(Format::F32, &[], 1), Err(Code::WrongLength));
    assert_eq!(parse(Format::F32, &f32::NAN.to_le_bytes(), 1), Err(Code::NotFinite));
    let many = vec![0; 2 * (MAX_SAMPLES_PER_MESSAGE + 1)];
    assert_eq!(parse(Format::I16, &many, 1), Err(Code::WrongLength));
    assert!(parse(Format::I16, &many, MAX_SAMPLES_PER_MESSAGE + 1).is_ok());
}

#[test]
fn what_is_no_input_is_refused_with_a_code() {
    let long = format!("[{}1]", "1,".repeat(MAX_CHANNELS));
    let many = format!("{{\"samples\": [{}[1]]}}", "[1],".repeat(MAX_SAMPLES_PER_MESSAGE));
    for (payload, code) in [
        ("hello", Code::Malformed),
        ("", Code::Malformed),
        ("\"69\"", Code::Malformed),
        ("true", Code::Malformed),
        ("[1, NaN]", Code::Malformed),
        ("[1, null]", Code::Malformed),
        ("[1e999]", Code::Malformed),
        ("[1] [2]", Code::Malformed),
        ("[[1]]", Code::Malformed),
        ("{\"values\": [1], \"more\": 2}", Code::Malformed),
        ("{\"values\": [1], \"values\": [1]}", Code::Malformed),
        ("{\"values\": [1], \"samples\": [[1]]}", Code::Malformed),
        ("{\"samples\": [1]}", Code::Malformed),
        ("{}", Code::Malformed),
        ("[]", Code::WrongLength),
        ("{\"samples\": []}", Code::WrongLength),
        ("{\"samples\": [[]]}", Code::WrongLength),
        ("{\"samples\": [[1], [1, 2]]}", Code::WrongLength),
        (&long, Code::WrongLength),
        (&many, Code::WrongLength),
    ] {
        assert_eq!(parse(Format::Json, payload.as_bytes(), 1), Err(code), "{payload:.40}");
    }
    for (value, code) in [
        (cbor!([1, f64::NAN]), Code::NotFinite),
        (cbor!([1, f64::INFINITY]), Code::NotFinite),
        (cbor!(null), Code::Malformed),
        (cbor!({"more" => [1]}), Code::Malformed),
        (Ok(ciborium::Value::Bytes(vec![0; 8])), Code::Malformed),
    ] {
        assert_eq!(parse(Format::Cbor, &cbor(&value.unwrap()), 1), Err(code));
    }
}

#[test]
fn a_refusal_names_places_and_never_quotes_the_payload() {
    let text = r#"{"values":["-3617"]}"#;
    let binary = cbor(&cbor!({"values" => ["-3617"]}).unwrap());
    for (format, payload) in [(Format::Json, text.as_bytes()), (Format::Cbor, &binary[..])] {
        let refusal = Samples::parse(format, payload).err().unwrap();
        assert!(!refusal.message.contains("3617"), "{}", refusal.message);
    }
    let refusal = Samples::parse(Format::Json, b"[1,\n 2, x]").err().unwrap();
    assert!(refusal.message.contains("line 2, column 5"), "{}", refusal.message);
}

fn any_format() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::Json), Just(Format::Cbor), Just(Format::F32), Just(Format::I16)]
}

fn samples() -> impl Strategy<Value = Vec<Vec<f64>>> {
    (1..=8_usize, 1..=20_usize).prop_flat_map(|(width, count)| {
        prop::collection::vec(prop::collection::vec(-1e9..1e9_f64, width), count)
    })
}

proptest! {
    #[test]
    fn no_payload_panics(format in any_format(), payload: Vec<u8>, channels in 1..300_usize) {
        if let Ok(samples) = Samples::parse(format, &payload) {
            let _ = rows(&samples, channels);
        }
    }

    /// Documents that are nearly right: one byte of a good one is another.
    #[test]
    fn no_damaged_document_panics(
        samples in samples(), binary: bool, at: prop::sample::Index, byte: u8
    ) {
        let document = serde_json::json!({ "samples": samples });
        let (format, mut payload) = if binary {
            let mut bytes = Vec::new();
            ciborium::into_writer(&document, &mut bytes).unwrap();
            (Format::Cbor, bytes)
        } else {
            (Format::Json, serde_json::to_vec(&document).unwrap())
        };
        let at = at.index(payload.len());
        payload[at] = byte;
        if let Ok(samples) = Samples::parse(format, &payload) {
            prop_assert!(samples.values.iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn json_and_cbor_bring_the_same_numbers(samples in samples()) {
        let document = serde_json::json!({ "samples": samples });
        let mut binary = Vec::new();
        ciborium::into_writer(&document, &mut binary).unwrap();
        let width = samples[0].len();
        prop_assert_eq!(parse(Format::Json, &serde_json::to_vec(&document).unwrap(), width), Ok(samples.clone()));
        prop_assert_eq!(parse(Format::Cbor, &binary, width), Ok(samples));
    }

    #[test]
    fn packed_integers_come_back(values in prop::collection::vec(any::<i16>(), 1..200), width in 1..7_usize) {
        let payload: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let expected: Vec<Vec<f64>> =
            values.chunks(width).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect();
        let parsed = parse(Format::I16, &payload, width);
        if values.len() % width == 0 {
            prop_assert_eq!(parsed, Ok(expected));
        } else {
            prop_assert_eq!(parsed, Err(Code::WrongLength));
        }
    }
}
