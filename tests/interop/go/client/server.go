package main

import (
	"context"
	"fmt"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

const service = "inference.GRPCInferenceService"

// server is what is asked, and how its messages look.
type server struct {
	address string
	files   *protoregistry.Files
}

func open(address, descriptors string) (*server, error) {
	raw, err := os.ReadFile(descriptors)
	if err != nil {
		return nil, err
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(raw, set); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(set)
	return &server{address, files}, err
}

// dial opens a connection of its own.
func (s *server) dial(options ...grpc.DialOption) (*grpc.ClientConn, error) {
	most := 64 << 20
	options = append(options,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(most), grpc.MaxCallSendMsgSize(most)))
	return grpc.NewClient("passthrough:///"+s.address, options...)
}

// message makes an empty message of package inference.
func (s *server) message(name string) *dynamicpb.Message {
	found, err := s.files.FindDescriptorByName(protoreflect.FullName("inference." + name))
	if err != nil {
		panic(err)
	}
	return dynamicpb.NewMessage(found.(protoreflect.MessageDescriptor))
}

// filled makes a message from its JSON form.
func (s *server) filled(name, format string, values ...any) *dynamicpb.Message {
	message := s.message(name)
	if err := protojson.Unmarshal(fmt.Appendf(nil, format, values...), message); err != nil {
		panic(err)
	}
	return message
}

// infer makes a request with one input of four elements.
func (s *server) infer(model, id, datatype string, rows int, raw []byte) *dynamicpb.Message {
	message := s.filled("ModelInferRequest",
		`{"model_name": %q, "id": %q, "inputs": [{"name": "INPUT", "datatype": %q, "shape": [%d, 4]}]}`,
		model, id, datatype, rows)
	message.Mutable(field(message, "raw_input_contents")).List().Append(protoreflect.ValueOfBytes(raw))
	return message
}

// ask makes a unary call.
func (s *server) ask(
	ctx context.Context, connection *grpc.ClientConn, method string, request proto.Message, options ...grpc.CallOption,
) (*dynamicpb.Message, error) {
	answer := s.message(method + "Response")
	return answer, connection.Invoke(ctx, "/"+service+"/"+method, request, answer, options...)
}

func (s *server) stream(ctx context.Context, connection *grpc.ClientConn) (grpc.ClientStream, error) {
	both := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	return connection.NewStream(ctx, both, "/"+service+"/ModelStreamInfer")
}

func field(message protoreflect.Message, name protoreflect.Name) protoreflect.FieldDescriptor {
	return message.Descriptor().Fields().ByName(name)
}

func text(message protoreflect.Message, name protoreflect.Name) string {
	return message.Get(field(message, name)).String()
}

// output gives the first output's bytes.
func output(answer protoreflect.Message) []byte {
	list := answer.Get(field(answer, "raw_output_contents")).List()
	if list.Len() == 0 {
		return nil
	}
	return list.Get(0).Bytes()
}
