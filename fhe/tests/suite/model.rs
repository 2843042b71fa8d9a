//! Model files, cards, windows and levels.

use crate::common::{levels, model, model_json, parse};
use moai_fhe::{Model, ModelCard, ModelError, Window, WindowError};
use proptest::prelude::*;
use serde_json::{Value, json};

fn valid() -> Value {
    model_json("lookup", 4, &[vec![vec![3, -2, 1, 0], vec![0, 1, 2, 3]]], &[0, 1])
}

/// The model file with one field replaced.
fn with(pointer: &str, value: Value) -> Value {
    let mut json = valid();
    *json.pointer_mut(pointer).expect("the field exists") = value;
    json
}

fn refused_field(json: &Value) -> &'static str {
    match parse(json) {
        Err(ModelError::Invalid { field, .. }) => field,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted {json}"),
    }
}

#[test]
fn every_field_is_checked() {
    let long = "x".repeat(65);
    for (pointer, value, field) in [
        ("/format", json!(2), "format"),
        ("/id", json!(""), "id"),
        ("/id", json!("a/b"), "id"),
        ("/id", json!(long), "id"),
        ("/levels", json!(5), "levels"),
        ("/levels", json!(0), "levels"),
        ("/window/samples", json!(0), "window.samples"),
        ("/window/channels", json!([]), "window.channels"),
        ("/window/channels", json!(["a\nb"]), "window.channels"),
        ("/features", json!([]), "features"),
        ("/features/0/channel", json!(1), "features.channel"),
        ("/features/0/edges", json!([1.0, 2.0]), "features.edges"),
        ("/features/0/edges", json!([1.0, 1.0, 2.0]), "features.edges"),
        ("/features/0/edges", json!([2.0, 1.0, 3.0]), "features.edges"),
        ("/labels", json!(["only one"]), "labels"),
        ("/labels", json!(["", "b", "c"]), "labels"),
        ("/tables", json!([]), "tables"),
        ("/tables/0", json!([[0, 0, 0, 0]]), "tables"),
        ("/tables/0/1", json!([0, 0, 0]), "tables"),
        ("/tables/0/1/2", json!(63), "tables"),
        ("/tables/0/1/2", json!(i32::MIN), "tables"),
        ("/bias", json!([0]), "bias"),
        ("/bias/0", json!(i32::MAX), "tables"),
    ] {
        assert_eq!(refused_field(&with(pointer, value.clone())), field, "{pointer} = {value}");
    }
}

#[test]
fn a_threshold_model_has_two_labels_and_tables_of_bits() {
    let threshold =
        |tables: &[Vec<Vec<i32>>], bias: &[i32]| model_json("threshold", 2, tables, bias);
    let limit = vec![vec![0, 1]];
    assert!(parse(&threshold(std::slice::from_ref(&limit), &[])).is_ok());
    assert_eq!(refused_field(&threshold(&[vec![vec![0, 2]]], &[])), "tables");
    assert_eq!(refused_field(&threshold(std::slice::from_ref(&limit), &[0])), "bias");
    assert_eq!(refused_field(&threshold(&[vec![vec![0, 0]]], &[])), "tables", "never alarms");
    assert_eq!(refused_field(&threshold(&[vec![vec![0, 1], vec![0, 1]]], &[])), "labels");
    assert_eq!(refused_field(&threshold(&vec![limit; 16], &[])), "features");
}

#[test]
fn unknown_fields_and_broken_json_are_refused() {
    for json in [
        json!({}),
        json!([]),
        with("/kind", json!("linear")),
        with("/features/0/statistic", json!("median")),
        with("/features/0/edges/0", json!("NaN")),
        with("/tables/0/0/0", json!(1.5)),
        {
            let mut json = valid();
            json["score_bits"] = json!(7);
            json
        },
    ] {
        assert!(matches!(parse(&json), Err(ModelError::Syntax(_))), "{json}");
    }
    assert!(matches!(Model::from_json(b"{\"format\":1,"), Err(ModelError::Syntax(_))));
    let huge = vec![b' '; moai_fhe::MAX_MODEL_LEN + 1];
    assert!(matches!(Model::from_json(&huge), Err(ModelError::TooLarge { .. })));
}

#[test]
fn a_model_that_would_err_too_often_is_refused() {
    let fits = |features: usize, entry: i32| {
        let mut tables = vec![vec![vec![0, entry]]; features];
        tables[0] = vec![vec![0, 1]];
        parse(&model_json("lookup", 2, &tables, &[0]))
    };
    assert!(fits(40, 1).is_ok());
    assert!(fits(100, 0).is_ok(), "narrow scores leave room for more bootstraps");
    assert!(matches!(fits(60, 1), Err(ModelError::Noise { .. })));
}

#[test]
fn a_model_that_would_cost_too_much_is_refused() {
    let tables = vec![vec![vec![0; 16]; 60]; 20];
    assert_eq!(refused_field(&model_json("lookup", 16, &tables, &[0; 60])), "features");
}

#[test]
fn a_card_survives_json_and_is_checked_again() {
    let card = parse(&valid()).unwrap().card().clone();
    let mut json = serde_json::to_value(&card).unwrap();
    assert!(serde_json::from_value::<ModelCard>(json.clone()).unwrap() == card);
    assert!(json.get("tables").is_none(), "tables stay on the server");
    json["context"] = json!("00".repeat(32));
    assert!(serde_json::from_value::<ModelCard>(json.clone()).is_err());
    json["context"] = json!(card.context());
    json["score_bits"] = json!(8);
    assert!(serde_json::from_value::<ModelCard>(json).is_err());
}

#[test]
fn the_label_is_the_largest_score_and_ties_go_to_the_lower_index() {
    let model = model("lookup", 4, &[vec![vec![-1, 0, 2, 2], vec![-3, 0, 2, 5]]], &[0, 0]);
    let label = |level| {
        let scores = model.evaluate_clear(&levels(&model, &[level])).unwrap();
        model.card().label(&scores).to_owned()
    };
    assert_eq!([0, 1, 2, 3].map(label), ["label 0", "label 0", "label 1", "label 2"]);
}

#[test]
fn statistics_transforms_and_edges_are_as_documented() {
    // Readings 1, 2, 3, 6: mean 3, population deviation sqrt(3.5), max 6, min 1.
    for (statistic, value) in [("mean", 3.0), ("std", 3.5_f64.sqrt()), ("max", 6.0), ("min", 1.0)] {
        for (transform, value) in [("none", value), ("signed_log", f64::ln_1p(value))] {
            // An edge at the value counts, one just above doesn't.
            let edges = json!([value - 0.1, value, value + 1e-9]);
            let mut json = with("/features/0/edges", edges);
            json["window"]["samples"] = json!(4);
            json["features"][0]["statistic"] = json!(statistic);
            json["features"][0]["transform"] = json!(transform);
            let model = parse(&json).unwrap();
            let window = Window::new(4, 1, [2.0_f32, 1.0, 6.0, 3.0]).unwrap();
            let levels = model.card().inputs(&window).unwrap();
            assert_eq!(levels.levels(), [2], "{transform} of {statistic}");
        }
    }
}

#[test]
fn channels_are_read_row_by_row_and_keep_their_sign() {
    let mut json = model_json("lookup", 2, &vec![vec![vec![0, 1]]; 2], &[0]);
    json["window"]["samples"] = json!(2);
    for (feature, edge) in [(0, -f64::ln_1p(5.5)), (1, 40.0)] {
        json["features"][feature]["edges"] = json!([edge]);
        json["features"][feature]["transform"] =
            json!(if feature == 0 { "signed_log" } else { "none" });
    }
    let model = parse(&json).unwrap();
    let levels = |values: [f64; 4]| {
        model.card().inputs(&Window::new(2, 2, values).unwrap()).unwrap().levels().to_vec()
    };
    assert_eq!(levels([-6.0, 39.0, -4.0, 42.0]), [1, 1]);
    assert_eq!(levels([-7.0, 39.0, -5.0, 40.0]), [0, 0]);
}

#[test]
fn windows_of_another_shape_or_with_odd_values_are_refused() {
    let window = |samples, channels, values: &[f64]| {
        Window::new(samples, channels, values.iter().copied()).err()
    };
    assert_eq!(window(0, 1, &[]), Some(WindowError::Shape { samples: 0, channels: 1 }));
    assert_eq!(window(1, 257, &[]), Some(WindowError::Shape { samples: 1, channels: 257 }));
    assert_eq!(window(2, 2, &[0.0; 3]), Some(WindowError::Length { expected: 4, actual: 3 }));
    assert_eq!(window(2, 2, &[0.0; 5]), Some(WindowError::Length { expected: 4, actual: 5 }));
    assert_eq!(window(1, 2, &[0.0, f64::NAN]), Some(WindowError::NotFinite { index: 1 }));
    assert_eq!(window(1, 1, &[f64::INFINITY]), Some(WindowError::NotFinite { index: 0 }));
    let model = parse(&valid()).unwrap();
    let window = Window::new(2, 1, [0.0, 0.0]).unwrap();
    assert!(matches!(
        model.card().inputs(&window),
        Err(ModelError::WindowMismatch { samples: 1, channels: 1 })
    ));
}

proptest! {
    #[test]
    fn any_bytes_are_a_model_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(Model::from_json(&bytes).is_err());
    }

    #[test]
    fn any_finite_window_has_levels_in_range(values in prop::array::uniform4(-f64::MAX..f64::MAX)) {
        let mut json = valid();
        json["window"]["samples"] = json!(4);
        for statistic in ["mean", "std", "max", "min"] {
            json["features"][0]["statistic"] = json!(statistic);
            let model = parse(&json).unwrap();
            let window = Window::new(4, 1, values).unwrap();
            let levels = model.card().inputs(&window).unwrap();
            prop_assert!(levels.levels()[0] < 4);
            prop_assert!(model.evaluate_clear(&levels).is_ok());
        }
    }
}
