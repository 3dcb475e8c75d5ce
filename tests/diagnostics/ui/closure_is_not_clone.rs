use campanile::Router;

struct Connection;

fn main() {
    let connection = Connection;
    let _ = Router::<()>::new().task("orders.create", async move || {
        let _ = &connection;
    });
}
