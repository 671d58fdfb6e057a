// Gives the Detector's verdict from C++: opens an OpenVINO bundle, judges pictures, prints one JSON line for each.
//
//     verdict BUNDLE PICTURE...
//
// Exit code 0: every picture was judged; 1: one was not, or the bundle cannot be used; 2: wrong usage.
// What it leaves out and Python's Detector does: checking the files' SHA-256, TIFF pages and bounds on a picture's size.
// Open only bundles that `vae-edge inspect` has accepted on this device.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <openvino/openvino.hpp>

namespace {

using nlohmann::json;

struct Bundle {
    std::filesystem::path model;
    int height;
    int width;
    double white_level;        // 16-bit value that becomes 255
    double image_threshold;    // anomalous: score > image_threshold
    std::vector<double> calibration_scores;  // of held-out normals, ascending
};

Bundle open_bundle(const std::filesystem::path& folder) {
    std::ifstream file(folder / "manifest.json");
    if (!file) {
        throw std::runtime_error((folder / "manifest.json").string() + " cannot be read; expected a bundle's folder");
    }
    const json manifest = json::parse(file);
    if (manifest.at("target") != "openvino") {
        throw std::runtime_error(folder.string() + " is a bundle for " + manifest.at("target").get<std::string>() +
                                 "; expected one for openvino: run vae-export --target openvino");
    }
    const json& preparation = manifest.at("preparation");
    const json& thresholds = manifest.at("thresholds");
    return {folder / manifest.at("model_file").get<std::string>(),
            preparation.at("height").get<int>(),
            preparation.at("width").get<int>(),
            preparation.at("white_level").get<double>(),
            thresholds.at("image_threshold").get<double>(),
            thresholds.at("calibration_scores").get<std::vector<double>>()};
}

// Returns uint8 [height, width, 3] RGB, as vae_edge.image.load_prepared does.
cv::Mat read_prepared(const std::string& path, const Bundle& bundle) {
    cv::Mat picture = cv::imread(path, cv::IMREAD_ANYDEPTH | cv::IMREAD_ANYCOLOR);
    if (picture.empty()) {
        throw std::runtime_error(path + " cannot be read as a picture");
    }
    if (picture.depth() == CV_16U) {
        picture.convertTo(picture, CV_8U, 255.0 / bundle.white_level);
    } else if (picture.depth() != CV_8U) {
        throw std::runtime_error(path + " has neither 8 nor 16 bits a channel");
    }
    const cv::Size wanted(bundle.width, bundle.height);
    // By pixel area where a side shrinks, bilinearly where one grows, in two steps where one does each.
    const cv::Size smaller(std::min(picture.cols, wanted.width), std::min(picture.rows, wanted.height));
    if (smaller != picture.size()) {
        cv::resize(picture, picture, smaller, 0, 0, cv::INTER_AREA);
    }
    if (smaller != wanted) {
        cv::resize(picture, picture, wanted, 0, 0, cv::INTER_LINEAR);
    }
    cv::cvtColor(picture, picture, picture.channels() == 1 ? cv::COLOR_GRAY2RGB : cv::COLOR_BGR2RGB);
    return picture;
}

// The conformal p-value among the held-out normals: (1 + how many score at least as much) / (1 + how many there are).
double p_value(double score, const std::vector<double>& ascending) {
    const auto first = std::lower_bound(ascending.begin(), ascending.end(), score);
    return (1.0 + static_cast<double>(ascending.end() - first)) / (1.0 + static_cast<double>(ascending.size()));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: " << argv[0] << " BUNDLE PICTURE...\n";
        return 2;
    }
    try {
        const Bundle bundle = open_bundle(argv[1]);
        ov::Core core;
        auto model = core.read_model(bundle.model.string());
        model->reshape(ov::PartialShape{1, bundle.height, bundle.width, 3});
        // FP32: a processor with bfloat16 would take that by itself, and its verdicts may differ.
        auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                                           ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
        auto request = compiled.create_infer_request();
        bool all_judged = true;
        for (int i = 2; i < argc; ++i) {
            json line = {{"source", argv[i]}};
            try {
                cv::Mat picture = read_prepared(argv[i], bundle);
                const ov::Shape shape{1, static_cast<std::size_t>(bundle.height),
                                      static_cast<std::size_t>(bundle.width), 3};
                request.set_tensor("image", ov::Tensor(ov::element::u8, shape, picture.data));
                request.infer();
                const double score = request.get_tensor("score").data<const float>()[0];
                if (!std::isfinite(score)) {
                    throw std::runtime_error("the score is not a finite number: export the bundle again");
                }
                line["is_anomalous"] = score > bundle.image_threshold;
                line["score"] = score;
                line["threshold"] = bundle.image_threshold;
                line["p_value"] = p_value(score, bundle.calibration_scores);
            } catch (const std::exception& error) {
                line["error"] = error.what();
                all_judged = false;
            }
            std::cout << line.dump() << std::endl;
        }
        return all_judged ? 0 : 1;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}
