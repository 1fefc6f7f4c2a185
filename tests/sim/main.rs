mod mix;
mod model;
mod reply;
mod rng;
