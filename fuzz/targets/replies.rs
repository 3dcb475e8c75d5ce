//! Reply envelopes.
#![no_main]

use campanile::transport::codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let reply = match codec::decode_reply(bytes) {
        Ok(reply) => reply,
        Err(reason) => return assert!(!reason.is_empty() && reason.len() < 400, "{reason}"),
    };
    let answer = match reply.answer {
        Ok(answer) => answer,
        Err(reason) => return assert!(!reason.is_empty() && reason.len() < 400, "{reason}"),
    };
    let envelope = codec::encode_reply(&reply.correlation_id, &answer);
    let again = codec::decode_reply(&envelope);
    let again = again.expect("what was read can be written");
    assert_eq!(again.correlation_id, reply.correlation_id);
    match (again.answer.expect("it can be read"), answer) {
        (Ok(again), Ok(reply)) => {
            assert_eq!(again.payload, reply.payload);
            assert_eq!(again.headers, reply.headers);
        }
        (Err(again), Err(error)) => assert_eq!(again, error),
        (again, answer) => panic!("{answer:?} became {again:?}"),
    }
});
