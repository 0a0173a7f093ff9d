//! Real namespaces, real rules, real packets; guests are played by a second namespace at the other end
//! of the tap. Everything is made by the tests, and no packet leaves what they made.

mod ground;
mod lives;
mod names;
mod passage;
mod proxied;
mod spoofing;
mod vaults;
mod world;
