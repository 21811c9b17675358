mod behaviour;
mod hostile;
mod lan;
mod network;
