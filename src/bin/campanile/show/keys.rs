//! Keys that are pressed while a live view is shown.

use std::io::{self, IsTerminal, Read};

use tokio::sync::mpsc;

/// Receives single keys from the terminal, without echo. Dropping this value restores the terminal.
/// If standard input is no terminal, no key arrives.
pub(crate) struct Keys {
    receiver: mpsc::UnboundedReceiver<u8>,
    #[cfg(unix)]
    previous_settings: Option<rustix::termios::Termios>,
}

impl Keys {
    pub(crate) fn listen() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        if io::stdin().is_terminal() {
            // A read from standard input cannot be cancelled, so this thread may run until the
            // process ends.
            std::thread::spawn(move || {
                for key in io::stdin().lock().bytes().map_while(Result::ok) {
                    if sender.send(key).is_err() {
                        return;
                    }
                }
            });
        }
        Self {
            receiver,
            #[cfg(unix)]
            previous_settings: disable_line_mode(),
        }
    }

    /// Waits until this key is pressed.
    pub(crate) async fn wait_for(&mut self, wanted: u8) {
        while let Some(key) = self.receiver.recv().await {
            if key == wanted {
                return;
            }
        }
        std::future::pending().await
    }
}

/// Makes the terminal send each key immediately, without echo. Returns the previous settings, or
/// `None` without a terminal.
#[cfg(unix)]
fn disable_line_mode() -> Option<rustix::termios::Termios> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

    let previous = tcgetattr(io::stdin()).ok()?;
    let mut unbuffered = previous.clone();
    unbuffered
        .local_modes
        .remove(LocalModes::ICANON | LocalModes::ECHO);
    tcsetattr(io::stdin(), OptionalActions::Now, &unbuffered).ok()?;
    Some(previous)
}

impl Drop for Keys {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(previous) = &self.previous_settings {
            let now = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(io::stdin(), now, previous);
        }
    }
}
