//! The derive macro of shmbus.
