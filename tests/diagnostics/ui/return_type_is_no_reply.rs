use campanile::Router;

struct User;

async fn get() -> User {
    User
}

fn main() {
    let _ = Router::<()>::new().rpc("user.get", get);
}
