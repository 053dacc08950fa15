//! The derive, the codec and the schema together, over the public face.

mod decoding;
mod differences;
mod golden;
mod hostile;
mod refused;
mod renamed;
mod shapes;
mod writing;
