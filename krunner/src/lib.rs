//! krunner.
