//! A client with the bare pages: floods of cancels and bells; half calls and silence.
