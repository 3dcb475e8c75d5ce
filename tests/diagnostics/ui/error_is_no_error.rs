use campanile::Router;

struct Problem;

async fn get() -> Result<String, Problem> {
    Err(Problem)
}

fn main() {
    let _ = Router::<()>::new().rpc("user.get", get);
}
