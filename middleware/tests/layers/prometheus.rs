//! Runs the example `prometheus`.

#[allow(dead_code)]
#[path = "../../examples/prometheus.rs"]
mod example;

use campanile::{serve, transport::memory::Memory};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn a_scrape_shows_sent_and_handled_messages_and_the_transports_state() {
    let recorder = example::recorder().unwrap();
    let prometheus = recorder.handle();
    let _local = metrics::set_default_local_recorder(&recorder);
    campanile_middleware::metrics::describe();
    let memory = Memory::new();
    let worker = tokio::spawn(serve(memory.clone(), example::app()).into_future());
    example::traffic(&example::client(&memory), &memory)
        .await
        .unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let scraped = async {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let get = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
        connection.write_all(get).await.unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = tokio::select! {
        text = scraped => text,
        ended = example::answer_scrapes(listener, &memory, &prometheus) => panic!("{ended:?}"),
    };
    worker.abort();
    for line in [
        "HTTP/1.1 200 OK",
        "# TYPE messaging_client_sent_messages counter",
        "# TYPE messaging_process_duration histogram",
        r#"messaging_client_sent_messages{messaging_system="memory",messaging_operation_name="send",messaging_operation_type="send",messaging_destination_name="orders.create",campanile_message_kind="task"} 3"#,
        r#"messaging_client_consumed_messages{messaging_system="memory",messaging_operation_name="process",messaging_operation_type="process",messaging_destination_name="orders.create",campanile_message_kind="task",messaging_consumer_group_name="app_group"} 2"#,
        r#"messaging_consumer_group_name="app_group",error_type="dead_letter"} 1"#,
        r#"le="0.005""#,
        r#"campanile_transport_sent{messaging_system="memory"} 4"#,
        r#"campanile_transport_dead{messaging_system="memory"} 1"#,
        r#"campanile_transport_ready{messaging_system="memory"} 1"#,
        r#"campanile_group_dead{messaging_system="memory",stream="app_stream",group="app_group"} 1"#,
        r#"campanile_group_lag{messaging_system="memory",stream="app_stream",group="app_group"} 0"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
