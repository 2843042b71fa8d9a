//! Encrypted evaluation equals plaintext evaluation, for every kind and shape of model.

use crate::common::{levels, model, round_trip};
use moai_fhe::Model;
use proptest::prelude::*;

/// Tables of 2 to 4 features, with entries small enough for any number of them.
fn tables(
    scores: std::ops::RangeInclusive<usize>,
    entries: std::ops::RangeInclusive<i32>,
) -> impl Strategy<Value = (u8, Vec<Vec<Vec<i32>>>)> {
    (prop::sample::select(vec![2_u8, 4, 8, 16]), 2..=4_usize, scores)
        .prop_flat_map(move |(levels, features, scores)| {
            let row = prop::collection::vec(entries.clone(), usize::from(levels));
            let table = prop::collection::vec(row, scores);
            (Just(levels), prop::collection::vec(table, features))
        })
        .prop_filter("a score without an entry other than 0", |(_, tables)| {
            let scores = 0..tables[0].len();
            scores.into_iter().all(|score| tables.iter().any(|t| t[score].iter().any(|e| *e != 0)))
        })
}

/// A lookup model and levels for it.
fn lookups() -> impl Strategy<Value = (Model, Vec<u8>, u64)> {
    tables(1..=4, -13..=13).prop_flat_map(|(level_count, tables)| {
        let bias = prop::collection::vec(-10..=10_i32, tables[0].len());
        let values = prop::collection::vec(0..level_count, tables.len());
        (bias, values, any::<u32>()).prop_map(move |(bias, values, entropy)| {
            (model("lookup", level_count, &tables, &bias), values, entropy.into())
        })
    })
}

/// A threshold model and levels for it.
fn thresholds() -> impl Strategy<Value = (Model, Vec<u8>, u64)> {
    tables(1..=1, 0..=1).prop_flat_map(|(level_count, tables)| {
        let values = prop::collection::vec(0..level_count, tables.len());
        (values, any::<u32>()).prop_map(move |(values, entropy)| {
            (model("threshold", level_count, &tables, &[]), values, entropy.into())
        })
    })
}

fn agrees(model: &Model, values: &[u8], entropy: u64) -> bool {
    let levels = levels(model, values);
    let clear = model.evaluate_clear(&levels).expect("the levels fit the model");
    round_trip(model, &levels, entropy) == clear
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 32, ..Default::default() })]

    #[test]
    fn any_lookup_agrees_with_its_plaintext((model, values, entropy) in lookups()) {
        prop_assert!(agrees(&model, &values, entropy));
    }

    #[test]
    fn any_threshold_agrees_with_its_plaintext((model, values, entropy) in thresholds()) {
        prop_assert!(agrees(&model, &values, entropy));
    }
}

#[test]
fn every_level_selects_its_own_entry() {
    // Distinct entries in every box, the negacyclic ends of the table among them.
    for level_count in [2, 4, 8, 16_u8] {
        let stride = 16 / level_count;
        let table: Vec<Vec<i32>> = (0..stride)
            .map(|score| (0..level_count).map(|v| i32::from(v * stride + score) - 7).collect())
            .collect();
        let bias = vec![0; usize::from(stride)];
        let model = model("lookup", level_count, &[table], &bias);
        for level in 0..level_count {
            assert!(agrees(&model, &[level], level.into()), "level {level} of {level_count}");
        }
    }
}

#[test]
fn a_full_window_of_three_classes_agrees() {
    let table = |feature: i32| -> Vec<Vec<i32>> {
        (0..2).map(|score| (0..8).map(|v| (v * (feature + score)) % 5 - 2).collect()).collect()
    };
    let tables: Vec<_> = (0..24).map(table).collect();
    let model = model("lookup", 8, &tables, &[-7, 5]);
    assert_eq!(model.card().bootstraps(), 24, "two scores share a bootstrap");
    for shift in 0..3 {
        let values: Vec<u8> = (0..24).map(|feature| (feature * 5 + shift) % 8).collect();
        assert!(agrees(&model, &values, shift.into()), "shift {shift}");
    }
}

#[test]
fn a_sum_may_reach_both_ends_of_its_score() {
    let tables = [vec![vec![-31, 30]], vec![vec![-30, 31]]];
    let model = model("lookup", 2, &tables, &[-1]);
    for values in [[0, 0], [1, 1], [0, 1], [1, 0]] {
        assert!(agrees(&model, &values, 3));
    }
}

#[test]
fn the_alarm_of_fifteen_limits_hears_each_of_them() {
    let model = model("threshold", 2, &vec![vec![vec![0, 1]]; 15], &[]);
    let (clear, all) = ([0; 15], [1; 15]);
    let one = |loud: usize| std::array::from_fn(|feature| u8::from(feature == loud));
    for (values, expected) in
        [(clear, "label 0"), (all, "label 1"), (one(0), "label 1"), (one(14), "label 1")]
    {
        let scores = round_trip(&model, &levels(&model, &values), 9);
        assert_eq!(model.card().label(&scores), expected);
    }
}

#[test]
fn messages_are_as_small_as_promised() {
    let model = model("lookup", 8, &vec![vec![vec![1; 8]; 2]; 24], &[0, 0]);
    assert!(model.card().max_ciphertext_len() <= 150, "{}", model.card().max_ciphertext_len());
    assert!(model.card().max_result_len() <= 4200, "{}", model.card().max_result_len());
    const { assert!(moai_fhe::MAX_EVALUATION_KEY_LEN <= 25_000_000) };
}
