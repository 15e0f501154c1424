//! Salts of places: random, not secret, a value each, so they are drawn some hundred at a time.

use fieldcrypt_envelope::random;

use crate::error::Error;

pub struct Salts {
    stock: [[u8; 4]; Salts::MOST],
    left: usize,
    drawn: usize,
}

impl Salts {
    const MOST: usize = 256;
    /// Nothing drawn yet.
    pub const NONE: Self = Self { stock: [[0; 4]; Self::MOST], left: 0, drawn: 1 };

    /// The next one. The first costs what one costs: twice as many are drawn each time.
    #[inline]
    pub fn next(&mut self) -> Result<[u8; 4], Error> {
        if self.left == 0 {
            self.draw()?;
        }
        self.left -= 1;
        Ok(self.stock[self.left])
    }

    #[cold]
    fn draw(&mut self) -> Result<(), Error> {
        self.drawn = (self.drawn * 2).min(Self::MOST);
        random(self.stock[..self.drawn].as_flattened_mut())?;
        self.left = self.drawn;
        Ok(())
    }
}
