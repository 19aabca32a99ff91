//! What other shards, the directory and the control thread say.

use ringpost_ring::Ring;

use super::Shard;
use super::message::MeshMessage;
use crate::limits::MESH_BATCH_MAX;
use crate::mesh::Source;

impl<R: Ring> Shard<R> {
    pub(super) fn drain_mesh(&mut self) {
        for _ in 0..MESH_BATCH_MAX {
            let Some(inbound) = self.mesh.pop() else { return };
            match (inbound.from, inbound.message) {
                (_, MeshMessage::Control(request)) => self.handle_control(request),
                (_, MeshMessage::Answered(answered)) => self.handle_answered(*answered),
                (Source::Shard(from), message) => self.handle_mesh(from, message),
                (Source::Control | Source::Directory, _) => {
                    unreachable!("they have one kind of message each")
                }
            }
        }
    }

    fn handle_mesh(&mut self, from: u16, message: MeshMessage) {
        match message {
            MeshMessage::Move(arrival) => self.handle_move(from, arrival),
            MeshMessage::Store(request) => self.handle_store(*request),
            MeshMessage::Receipt(receipt) => self.handle_receipt(from, receipt),
            MeshMessage::Moved => self.mesh.replied(from),
            MeshMessage::Stored(reply) => {
                self.mesh.replied(from);
                self.settle(*reply);
            }
            MeshMessage::Unknown(unknown) => {
                self.mesh.replied(from);
                self.handle_unknown(unknown.origin, &unknown.to);
            }
            MeshMessage::ReceiptStored { device } => {
                self.receipt_replied(from);
                self.handle_receipt_stored(device);
            }
            MeshMessage::BlockArmed(note) => {
                let home = self.home.as_mut().expect("blocks are armed at home shards");
                home.blocks.noted(&note);
            }
            MeshMessage::Group(request) => self.handle_group(request),
            MeshMessage::GroupAnswer(answer) => {
                self.mesh.replied(from);
                self.handle_group_answer(from, *answer);
            }
            MeshMessage::Part(part) => self.handle_part(part),
            MeshMessage::PartDone(reply) => {
                self.mesh.replied(from);
                self.part_done(*reply);
            }
            MeshMessage::GroupNews(news) => self.handle_group_news(from, &news),
            MeshMessage::GroupNewsTaken => self.mesh.replied(from),
            MeshMessage::StreamOrder(order) => self.handle_order(from, *order),
            MeshMessage::StreamOrderReply(reply) => self.handle_order_reply(from, reply),
            MeshMessage::StreamNews(news) => self.handle_news(from, *news),
            MeshMessage::StreamNewsReply(reply) => self.handle_news_reply(from, reply),
            MeshMessage::Datagram(datagram) => self.handle_foreign(from, &datagram),
            MeshMessage::DatagramTaken => self.handle_datagram_taken(from),
            MeshMessage::KeysLow(news) => self.handle_keys_low(from, *news),
            MeshMessage::GetList(request) => self.read_list(request.reader, request.user),
            MeshMessage::List(reply) => {
                self.mesh.replied(from);
                self.tell_list(*reply);
            }
            MeshMessage::KeysLowTaken => self.mesh.replied(from),
            MeshMessage::Control(_) | MeshMessage::Answered(_) => {
                unreachable!("handled by the caller")
            }
        }
    }
}
