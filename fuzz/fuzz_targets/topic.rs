//! Whatever a topic says, parsing returns, and a topic that is taken has that one form.

#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_transport::topic::Topic;

fuzz_target!(|text: &str| {
    if let Ok(topic) = text.parse::<Topic>() {
        assert_eq!(topic.to_string(), text);
    }
});
