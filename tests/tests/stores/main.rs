//! Every key store with the same tests: a directory, and a Redis under TLS with a password; and what
//! only one of them has.

mod bench;
mod directory;
mod equal;
mod redis;
mod suite;

/// Each test of the suite, once for each store.
macro_rules! with_both {
    ($($name:ident),+ $(,)?) => {
        mod in_a_directory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> anyhow::Result<()> {
                crate::suite::$name(crate::bench::Bench::directory()?).await
            })+
        }
        mod in_redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> anyhow::Result<()> {
                crate::suite::$name(crate::bench::Bench::redis().await?).await
            })+
        }
    };
}

with_both!(
    a_session_arrives_chunk_by_chunk_and_is_there_until_its_time_is_over,
    of_a_deleted_session_nothing_is_left_but_its_name_and_later_not_even_that,
    of_an_expired_session_nothing_is_left_but_its_name_and_later_not_even_that,
    a_later_open_goes_on_and_an_older_one_is_refused,
    other_keys_begin_anew_and_the_old_ones_are_gone,
    the_same_name_of_another_robot_is_another_session,
    a_tenant_gets_no_further_than_its_budget_and_disturbs_no_other,
    of_opens_at_once_each_number_counts_once_and_no_budget_is_exceeded,
    the_next_run_goes_on_where_the_last_was_killed,
    chunks_that_turned_out_wrong_are_forgotten_and_the_session_stays,
);
