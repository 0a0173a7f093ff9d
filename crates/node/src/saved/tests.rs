mod budget;
mod crash;
mod damage;
mod digest;
mod full_disk;
mod manifest;
