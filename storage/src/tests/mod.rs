//! The store on a disk that forgets un-synced writes.

mod disk;
mod world;
mod crash;
mod checkpoint;
mod damage;
mod missing;
mod gaps;
mod expiry;
mod full;
mod steady;
mod rot;
mod behaviour;
mod reshard;
