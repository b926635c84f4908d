//! Unary gRPC calls on HTTP/2: one message in, one message and a status out.
//!
//! A frame of gRPC is one byte for compression, four for the length, and a message. What this
//! module adds to that, and why it is not tonic's codec: etcd's answer to a message that is too
//! large (tonic has another code and text), and no copies. A request that came in one DATA frame,
//! as all small ones do, is decoded where it lies, and its keys and values are slices of it.
//! Streams are left to tonic.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use prost::Message;
use tonic::{Code, Status};

use crate::status::{Failure, Refusal};

/// A call as hyper hands it over.
pub(crate) type Request = http::Request<hyper::body::Incoming>;
/// What goes back to hyper.
pub(crate) type Response = http::Response<Body>;

const HEADER_LEN: usize = 5;

/// The largest answer that is sent, in bytes: what grpc-go takes for the limit if nothing else is
/// set, and what no client in use could take anyway.
const ANSWER_BYTES_MAX: usize = (2 << 30) - 1;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A decoded request, and how large it was on the wire.
#[derive(Debug)]
pub(crate) struct Received<M> {
    pub(crate) message: M,
    pub(crate) bytes: usize,
}

/// Reads the one message of a unary call.
///
/// # Errors
///
/// What the client is to hear: grpc-go's own texts, as etcd's clients know them.
pub(crate) async fn receive<M, B>(mut body: B, bytes_max: usize) -> Result<Received<M>, Failure>
where
    M: Message + Default,
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut frame = next_data(&mut body).await?.ok_or_else(cut_short)?;
    while !is_complete(&frame, bytes_max)? {
        let mut joined = frame.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        joined.put(next_data(&mut body).await?.ok_or_else(cut_short)?);
        frame = joined.freeze();
    }
    // The end of the stream may come by itself, in an empty frame. To answer before it is read
    // would reset the stream.
    if !body.is_end_stream() && next_data(&mut body).await?.is_some_and(|data| !data.is_empty()) {
        return Err(Status::internal("grpc: more than one message in a unary call").into());
    }

    frame.advance(HEADER_LEN);
    let bytes = frame.len();
    let message = M::decode(frame).map_err(|error| not_decoded(&error))?;
    Ok(Received { message, bytes })
}

/// The answer to a message that is none.
fn not_decoded(error: &prost::DecodeError) -> Failure {
    let error = error.to_string();
    // The decoder protects the stack, and only transactions can nest. Its error names every
    // level, and says at the end which it is.
    if error.ends_with("recursion limit reached") {
        return Refusal::TooManyOperations.into();
    }
    Status::internal(format!("grpc: error unmarshalling request: {error}")).into()
}

/// Whether `frame` holds a whole message.
fn is_complete(frame: &[u8], bytes_max: usize) -> Result<bool, Status> {
    let Some((&[compressed, a, b, c, d], message)) = frame.split_first_chunk::<HEADER_LEN>() else {
        return Ok(false);
    };
    if compressed != 0 {
        return Err(Status::unimplemented("grpc: Decompressor is not installed for this request"));
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if bytes_max < length {
        let text = format!("grpc: received message larger than max ({length} vs. {bytes_max})");
        return Err(Status::resource_exhausted(text));
    }
    if length < message.len() {
        return Err(Status::internal("grpc: more than one message in a unary call"));
    }
    Ok(message.len() == length)
}

/// The next bytes of the body; `None` at its end.
async fn next_data<B>(body: &mut B) -> Result<Option<Bytes>, Status>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
    match frame.transpose() {
        Ok(frame) => Ok(frame.and_then(|frame| frame.into_data().ok())),
        Err(error) => Err(Status::cancelled(error.to_string())),
    }
}

fn cut_short() -> Status {
    Status::internal("grpc: the request ended before its message did")
}

/// A successful answer, unless it is too large to be sent.
pub(crate) fn reply<M: Message>(message: &M) -> Response {
    match encode(message, ANSWER_BYTES_MAX) {
        Ok(frame) => response(Body::Message(frame)),
        Err(status) => refuse(&status),
    }
}

/// The frame that holds `message`.
///
/// # Errors
///
/// When it takes more than `bytes_max`, in grpc-go's words.
fn encode<M: Message>(message: &M, bytes_max: usize) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let too_large = || {
        let text =
            format!("grpc: trying to send message larger than max ({length} vs. {bytes_max})");
        Status::resource_exhausted(text)
    };
    if bytes_max < length {
        return Err(too_large());
    }
    let prefix = u32::try_from(length).map_err(|_| too_large())?;
    let mut frame = BytesMut::with_capacity(HEADER_LEN + length);
    frame.put_u8(0);
    frame.put_u32(prefix);
    message.encode(&mut frame).expect("the buffer has room for all of it");
    Ok(frame.freeze())
}

/// An answer that is only a status.
pub(crate) fn refuse(status: &Status) -> Response {
    let mut response = response(Body::Done);
    if status.add_header(response.headers_mut()).is_err() {
        // Only binary details could be unfit for a header, and no status of ours has any.
        response.headers_mut().insert("grpc-status", HeaderValue::from(Code::Internal as i32));
    }
    response
}

fn response(body: Body) -> Response {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Body {
    /// A message to send, then the trailers.
    Message(Bytes),
    /// The trailers: `grpc-status: 0`.
    Trailers,
    /// Nothing, or nothing more.
    Done,
    /// An answer to something that is not gRPC: bytes, and no trailers.
    Plain(Bytes),
    /// A stream that tonic drives.
    Stream(tonic::body::Body),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match &mut *self {
            Self::Message(message) => {
                let frame = Frame::data(std::mem::take(message));
                *self = Self::Trailers;
                frame
            }
            Self::Trailers => {
                *self = Self::Done;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Frame::trailers(trailers)
            }
            Self::Plain(bytes) => {
                let frame = Frame::data(std::mem::take(bytes));
                *self = Self::Done;
                frame
            }
            Self::Done => return Poll::Ready(None),
            Self::Stream(stream) => return Pin::new(stream).poll_frame(cx),
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message(_) | Self::Trailers | Self::Plain(_) => false,
            Self::Done => true,
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    /// HTTP/1.1 says the length before the body, if it is known.
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(bytes) => {
                SizeHint::with_exact(bytes.len().try_into().expect("a length fits in 64 bits"))
            }
            Self::Done => SizeHint::with_exact(0),
            Self::Message(_) | Self::Trailers => SizeHint::new(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::proto::etcdserverpb::PutRequest;

    /// A body that arrives in these pieces.
    struct Pieces(VecDeque<Bytes>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn receive_pieces(pieces: impl IntoIterator<Item = Bytes>) -> Result<PutRequest, Status> {
        let body = Pieces(pieces.into_iter().collect());
        let mut receiving = std::pin::pin!(receive(body, 100));
        match receiving.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(received) => {
                received.map(|received| received.message).map_err(|Failure(status)| status)
            }
            Poll::Pending => panic!("the body never waits"),
        }
    }

    fn request() -> PutRequest {
        PutRequest { key: "key".into(), value: "value".into(), ..PutRequest::default() }
    }

    #[test]
    fn a_message_is_the_same_however_it_is_cut() {
        let frame = encode(&request(), 100).unwrap();
        for size in 1..=frame.len() {
            let pieces = frame.chunks(size).map(Bytes::copy_from_slice);
            assert_eq!(receive_pieces(pieces).unwrap(), request());
        }
        let then_empty = [frame, Bytes::new()];
        assert_eq!(receive_pieces(then_empty).unwrap(), request());
    }

    #[test]
    fn a_message_in_one_piece_is_not_copied() {
        let frame = encode(&request(), 100).unwrap();
        let place = frame.as_ptr_range();
        let received = receive_pieces([frame]).unwrap();
        assert!(place.contains(&received.key.as_ptr()));
        assert!(place.contains(&received.value.as_ptr()));
    }

    #[test]
    fn a_frame_that_is_not_one_message_is_refused() {
        let frame = encode(&request(), 100).unwrap();
        let doubled = Bytes::from([&frame[..], &frame[..]].concat());
        let compressed = Bytes::from([&[1], &frame[1..]].concat());
        let cases = [
            (vec![], Code::Internal),
            (vec![frame.slice(..3)], Code::Internal),
            (vec![frame.slice(..frame.len() - 1)], Code::Internal),
            (vec![doubled], Code::Internal),
            (vec![frame.clone(), frame.clone()], Code::Internal),
            (vec![compressed], Code::Unimplemented),
            (vec![Bytes::from_static(&[0, 0, 0, 0, 101])], Code::ResourceExhausted),
            (vec![Bytes::from_static(&[0, 255, 255, 255, 255])], Code::ResourceExhausted),
        ];
        for (pieces, code) in cases {
            let status = receive_pieces(pieces.clone()).unwrap_err();
            assert_eq!(status.code(), code, "{pieces:?}");
        }
    }

    /// The length alone decides: what is too large is never kept.
    #[test]
    fn the_refusal_of_a_large_message_names_both_sizes() {
        let status = receive_pieces([Bytes::from_static(&[0, 0, 0, 1, 0])]).unwrap_err();
        assert_eq!(status.message(), "grpc: received message larger than max (256 vs. 100)");
    }

    /// A range can select more than fits into a message, and that is no reason to panic.
    #[test]
    fn an_answer_that_is_too_large_is_refused() {
        let length = request().encoded_len();
        assert!(encode(&request(), length).is_ok());
        let status = encode(&request(), length - 1).unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let text =
            format!("grpc: trying to send message larger than max ({length} vs. {})", length - 1);
        assert_eq!(status.message(), text);
    }
}
