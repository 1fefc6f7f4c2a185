mod check;
mod differential;
mod mix;
mod model;
mod reply;
mod rng;
